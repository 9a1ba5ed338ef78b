"""Audit a subject: one module a property."""
