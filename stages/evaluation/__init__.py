"""What a model is measured with: held-out loss, and benchmarks through evalscope."""
