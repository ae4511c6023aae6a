"""What every stage stands on: loading a pipeline, addressing its layers, hooks, noise prediction, sampling."""
