"""Subjects of other kinds than torch modules: files of other libraries, functions, endpoints. See docs/subjects.md."""
