"""What an application runs to record activity: nothing in here waits for a network, or raises into the application."""

from afterwrite.recorder.deliver import OpenSink
from afterwrite.recorder.options import Durability, Options, Overflow, read_options
from afterwrite.recorder.recorder import Recorded, Recorder, Stats

__all__ = ["Durability", "OpenSink", "Options", "Overflow", "Recorded", "Recorder", "Stats", "read_options"]
