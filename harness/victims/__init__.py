"""What an attack sees of a model: frozen, in float32, with counted passes and adapted gradients."""
