"""What the parent of many short runs imports once. Not TensorFlow: it does not survive a fork."""


import beam_pipelines.jobs.features
import beam_pipelines.jobs.index
import beam_pipelines.jobs.publish
import beam_pipelines.jobs.recommend  # noqa: F401
