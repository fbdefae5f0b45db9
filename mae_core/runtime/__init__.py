"""What every stage stands on: ranks, keyed randomness, inputs, plug-ins."""
