"""Makes the weights of a model small: bitsandbytes in this process, GPTQ in one of its own."""
