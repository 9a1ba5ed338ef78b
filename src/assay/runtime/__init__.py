"""The floor: errors, randomness, statistics, batching, hashing, the result store and the executor."""
