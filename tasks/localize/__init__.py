"""Finding the neurons and weights that hold a memory: plain torch, a file a method."""
