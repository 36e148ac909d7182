"""The teacher: self-supervised training, ours beside a plain loop of the same objective and views."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import torch
import typer
from side_by_side import Measured, chosen_ways, compare, device, exact_memory, work
from torch import Tensor

from limbeck.checkpoint import Checkpoint
from limbeck.data.dataset import ImageDataset
from limbeck.data.shards import ShardedImages, write_shards
from limbeck.interrupt import StopRequest
from limbeck.memory import keep_freed_memory
from limbeck.nn.encoders import ConvNet, EncoderConfig, ResNet, build_encoder
from limbeck.nn.flat import flatten
from limbeck.seeding import generator
from limbeck.spec import Architecture, Teacher
from limbeck.ssl.objectives import build_objective
from limbeck.ssl.training import train_ssl
from limbeck.ssl.views import Views
