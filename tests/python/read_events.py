"""Prints what TensorBoard reads from a run's folder: scalars by tag as [step, value], texts by tag, and times of events."""

import json
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0, "tensors": 0})
events.Reload()
tags = events.Tags()
scalars = {tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in tags["scalars"]}
times = {tag: [e.wall_time for e in events.Scalars(tag)] for tag in tags["scalars"]}
texts = {}
for tag in tags["tensors"]:
    assert events.SummaryMetadata(tag).plugin_data.plugin_name == "text", tag
    texts[tag] = [[e.step, tensor_util.make_ndarray(e.tensor_proto).item().decode()] for e in events.Tensors(tag)]
# NaN is no JSON
scalars = {tag: [[s, v if v == v else None] for s, v in points] for tag, points in scalars.items()}
print(json.dumps({"scalars": scalars, "texts": texts, "times": times}))
