"""Where models and data come from: hubs, Python packages, GGUF files, folders; used by `download` and `preprocess`."""
