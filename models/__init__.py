"""Two-tower model, evaluation, model registry; ``models.inference`` runs without Beam or TensorFlow."""
