"""What layers do for a prompt: sums that add up, never activations kept whole."""
