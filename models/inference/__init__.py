"""What serving runs: item index and user vector in NumPy. Never imports Beam or TensorFlow."""
