"""Rows: where they come from, what their formats mean, how they become tokens; used by `preprocess` and `tokenize`."""
