"""The Qwen2-VL backbone: pure functions and Flax modules, and its weights in and out."""
