"""The training loop: DeepSpeed's engine, optimisers, learning rates, saving and resuming."""
