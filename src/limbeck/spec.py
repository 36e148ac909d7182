"""The spec: what `limbeck run` takes on a laptop, `kubectl apply` on a cluster and the pipeline as its parameter.

It is defined here once. camelCase on the wire, snake_case in Python; every field has a type, bounds, a default
and one sentence. `specfile` reads it from YAML and explains what is wrong in a user's terms; `generate` derives
the JSON schema and the reference page from it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from limbeck.presets import Preset, completed, unpublished
from limbeck.redact import SECRET_INSIDE, SECRET_NAME

API_VERSION = "limbeck.dev/v1alpha1"

Name = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
Uri = Annotated[str, Field(min_length=1, max_length=2048)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(gt=0.0, le=100.0)]
Momentum = Annotated[float, Field(ge=0.0, lt=1.0)]
WeightDecay = Annotated[float, Field(ge=0.0, le=1.0)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?([numkKMGTPE]|[KMGTPE]i)?$")]

REGISTERED = "models:/"  # what the URI of a registered set begins with
PINNED = r"models:/[^/@]+/[1-9][0-9]{0,8}"  # one version of one
TIMM = "timm:"  # and that of a model of timm's

SourceFormat = Literal["auto", "images", "zip", "tar", "webdataset", "npz", "npy", "parquet", "cifar", "digits"]
Architecture = Literal["convnet", "resnet10", "resnet18"]
Norm = Literal["instance", "batch", "none"]
Initialization = Literal["highLoss", "random", "kCenter", "facilityLocation"]
Baseline = Literal["none", "start", "random", "highLoss", "kCenter", "facilityLocation", "full", "fullSsl"]
Jitter = Literal["none", "flipShift"]
OnBadImage = Literal["fail", "skip"]
Precision = Literal["float32", "bfloat16"]


def _conflict(field: str, found: object, allowed: str) -> PydanticCustomError:
    """A rule that crosses fields is broken; `field` is relative to the section whose validator says so."""
    context = {"field": field, "found": str(found), "allowed": allowed}
    return PydanticCustomError("conflict", "{field}: found {found}; allowed: {allowed}", context)


class Section(BaseModel):
    """A part of the spec: unknown fields, wrong types, NaN and infinity are refused."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
    )

    def wire(self) -> dict[str, Any]:
        """The section as it stands in a file: camelCase names, JSON types."""
        return self.model_dump(mode="json", by_alias=True)


class Source(Section):
    """The unlabelled images to distil."""

    uri: Uri = Field(
        description="Where the images are: a path, an fsspec URL, or sklearn:digits; `#name` picks a split."
    )
    format: SourceFormat = Field("auto", description="How they are stored; auto looks at the URL.")
    image_size: int = Field(32, ge=4, le=512, description="Side, in pixels, that every image is brought to.")
    limit: Count | None = Field(
        None, description="Use only this many images, drawn at random from the seed; all when absent."
    )
    on_bad_image: OnBadImage = Field(
        "fail", description="What to do about an image that cannot be read: stop, or leave it out and say so."
    )


class Output(Section):
    """Where results go."""

    uri: Uri = Field("limbeck-output", description="Folder or fsspec URL of the artifact store and the run's report.")


class Adam(Section):
    """AdamW with a cosine schedule."""

    rate: Rate = Field(1e-3, description="Learning rate at the top of the cosine.")
    weight_decay: WeightDecay = Field(1e-4, description="Decoupled weight decay.")
    warmup_epochs: int = Field(1, ge=0, le=1000, description="Epochs of linear warm-up before the cosine.")


class Augmentation(Section):
    """How the two views of an image are made for self-supervised learning."""

    min_crop: Probability = Field(0.2, description="Smallest share of the area that a random crop keeps.")
    flip: Probability = Field(0.5, description="Probability of a horizontal flip.")
    color_jitter: float = Field(
        0.5, ge=0.0, le=2.0, description="Strength of colour jitter, applied to 80 % of the views; 0 is none."
    )
    grayscale: Probability = Field(0.2, description="Probability of losing all colour.")
    blur: Probability = Field(0.0, description="Probability of a Gaussian blur.")
    rotation: float = Field(0.0, ge=0.0, le=180.0, description="Largest random rotation, in degrees.")


class Teacher(Section):
    """The encoder whose representations are the targets."""

    algorithm: Literal["barlowTwins", "simclr", "pretrained"] = Field(
        "barlowTwins", description="How the teacher is trained, or pretrained to import one from checkpoint."
    )
    architecture: Architecture = Field("resnet18", description="The teacher's network.")
    width: int = Field(64, ge=4, le=1024, description="Channels of its first stage.")
    depth: int | None = Field(
        None, ge=1, le=7, description="Blocks of a convnet; by default as many as leave 4x4 pixels."
    )
    norm: Norm = Field("batch", description="Normalisation layers of the teacher.")
    epochs: Count = Field(200, description="Epochs of self-supervised learning.")
    batch: int = Field(256, ge=2, le=65536, description="Images a step.")
    projection: int = Field(1024, ge=8, le=16384, description="Output dimension of the projection head.")
    temperature: float = Field(0.2, gt=0.0, le=10.0, description="Softmax temperature of SimCLR.")
    redundancy_weight: float = Field(5e-3, gt=0.0, le=1.0, description="Weight of Barlow Twins' off-diagonal terms.")
    precision: Precision = Field(
        "float32", description="Arithmetic of the encoder while it is trained; parameters and loss stay in float32."
    )
    optimizer: Adam = Field(default_factory=Adam, description="How the teacher is optimised.")
    augmentation: Augmentation = Field(
        default_factory=Augmentation, description="How the two views of an image are made."
    )
    checkpoint: Uri | None = Field(
        None,
        description="The encoder to import when algorithm is pretrained: a .safetensors, .pt or TorchScript "
        "file, or timm:NAME.",
    )

    @model_validator(mode="after")
    def _checkpoint_goes_with_pretrained(self) -> Teacher:
        if (self.algorithm == "pretrained") != (self.checkpoint is not None):
            found = "nothing" if self.checkpoint is None else repr(self.checkpoint)
            raise _conflict("checkpoint", found, "checkpoint is given exactly when algorithm is pretrained")
        return self


class Targets(Section):
    """What students are trained to give: the teacher's representation of every image."""

    standardize: bool = Field(
        True,
        description="Centre every dimension and bring all to unit variance by one common factor, so that step sizes "
        "mean the same for every teacher; false is the paper's raw representation.",
    )
    components: int = Field(
        32,
        ge=0,
        le=65536,
        description="Principal components of the representations that targets are made of, those that vary most, all "
        "where there are fewer; 0: all.",
    )
    whitening: float = Field(
        0.5,
        ge=0.0,
        le=1.0,
        description="How far these are brought to one variance, so that the loss does not follow the few that vary "
        "most: each is divided by its variance to half this power. 0: they vary as they do; 1: all alike.",
    )


class Student(Section):
    """The network that experts and the inner loop train."""

    architecture: Architecture = Field("convnet", description="The student's network.")
    depth: int | None = Field(
        None,
        ge=1,
        le=7,
        description="Blocks of a convnet; by default as many as leave 4x4 pixels (3 at 32x32).",
    )
    width: int = Field(128, ge=4, le=1024, description="Channels of a convnet, or of a ResNet's first stage.")
    norm: Norm = Field("instance", description="Normalisation layers of the student.")
    augmentation: Jitter = Field(
        "flipShift",
        description="How images are changed each time that an expert, a student of the inner loop or an evaluated "
        "encoder is trained on them, on both sides alike (Zhao and Bilen, 2021): not at all, or mirrored half of the "
        "time and shifted by up to an eighth of the side.",
    )


class Sgd(Section):
    """Stochastic gradient descent with momentum."""

    rate: Rate = Field(0.1, description="Learning rate.")
    momentum: Momentum = Field(0.9, description="Momentum, undampened.")
    weight_decay: WeightDecay = Field(1e-4, description="L2 weight decay.")


class InnerSgd(Section):
    """The optimiser of the inner loop, the one that pre-trains from the distilled set."""

    rate: Rate = Field(0.1, description="Learning rate at the start; it is learned from there.")
    momentum: Momentum = Field(0.9, description="Momentum; 0 is the paper's plain SGD.")
    weight_decay: WeightDecay = Field(0.0, description="L2 weight decay.")


class Trajectories(Section):
    """The expert trajectories: students trained on the full data towards the teacher's targets."""

    experts: int = Field(20, ge=1, le=100_000, description="How many experts, each with its own seed.")
    epochs: int | None = Field(
        None, ge=1, le=10_000, description="Epochs an expert; by default the fewest that distill can reach."
    )
    batch: int = Field(512, ge=1, le=65536, description="Images a step.")
    optimizer: Sgd = Field(default_factory=Sgd, description="How an expert is trained.")
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="CPU threads an expert is trained with, which shape the last bits of its sums; by default 1 for a "
        "very small network and else 2, on whatever machine.",
    )
    together: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Experts trained side by side, which shapes the last bits of their sums: those of index 0 to "
        "together - 1, and so on. A group is trained whole, even where one of it is missing, so experts should be a "
        "multiple. By default 1 on a CPU, where more do not pay, and on an accelerator 10, 5, 4, 2 or 1: the larger "
        "batch, image and student, the fewer, whatever memory is free. Each worker of a fan-out trains whole groups: "
        "1 uses most of them. It replaces execution.engine.expertsTogether.",
    )
    precision: Precision = Field(
        "float32", description="Arithmetic of the experts' networks; parameters stay in float32."
    )
    sharpness_radius: float = Field(
        0.0,
        ge=0.0,
        le=10.0,
        description="Radius of sharpness-aware minimisation (Foret et al., 2021), by which experts end in flatter "
        "places, at twice the cost; 0 is plain SGD.",
    )


class Kernel(Section):
    """KRR-ST (Lee et al., 2024): kernel ridge regression on the features of a pool of students."""

    pool: int = Field(10, ge=1, le=1000, description="Students in the pool, each trained on the synthetic set.")
    pool_steps: int = Field(
        1000, ge=1, le=1_000_000, description="Steps after which a student of the pool is replaced by a fresh one."
    )
    pool_weight_decay: WeightDecay = Field(1e-3, description="L2 weight decay of the pool's students.")
    real_batch: int = Field(1024, ge=1, le=65536, description="Real images an iteration.")
    ridge: float = Field(
        1e-6, gt=0.0, le=1.0, description="Ridge, as a share of the trace of the synthetic images' kernel matrix."
    )


class Distill(Section):
    """The optimisation of the synthetic set."""

    method: Literal["mkdt", "krrSt"] = Field(
        "mkdt",
        description="Match expert trajectories (MKDT), or regress the targets of real images on the synthetic ones "
        "(KRR-ST), by no inner loop but a pool of students that are trained at innerOptimizer's rate and momentum; "
        "experts then only score images for the start.",
    )
    seed: Seed | None = Field(
        None,
        description="Seed of the distillation alone: of the choice of the start, the expert and start epoch of every "
        "iteration, batches, augmentation and KRR-ST's pool; that of the spec when absent. Teacher, experts and rivals "
        "stay, so another seed repeats a distillation cheaply, to see how much of its figures is luck.",
    )
    size: Count | None = Field(None, description="Number of synthetic images; instead of fraction.")
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        None,
        description="Pixels of the synthetic set as a share of the source's, at source.imageSize; 0.02 when size is "
        "absent too.",
    )
    downsampling: int = Field(
        2,
        ge=1,
        le=64,
        description="Synthetic images are kept and learned at source.imageSize divided by this, rounded down, and "
        "enlarged to source.imageSize for training: the same pixels hold more images, each with targets of its own. "
        "Rivals are given as many bytes, targets included.",
    )
    pixels: Literal["uint8", "float32"] = Field(
        "uint8",
        description="How synthetic images are kept: as whole numbers 0 to 255, learned within that range, a byte each; "
        "or as unbounded float32, four bytes each, as the paper's are.",
    )
    initialization: Initialization = Field(
        "facilityLocation", description="Which real images the synthetic ones start from."
    )
    iterations: int = Field(2000, ge=1, le=10_000_000, description="Updates of the synthetic set.")
    inner_steps: int = Field(20, ge=1, le=10_000, description="Student steps an iteration (N).")
    inner_batch: int = Field(256, ge=1, le=65536, description="Synthetic images a student step.")
    pairs: int = Field(
        1, ge=1, le=1024, description="(Expert, start epoch) pairs that an iteration averages its gradient over."
    )
    precision: Precision = Field(
        "float32", description="Arithmetic of the student's network; parameters and adjoints stay in float32."
    )
    expert_gap: int = Field(1, ge=1, le=1000, description="Epochs of an expert that N steps must match (M).")
    max_start_epoch: int = Field(
        4, ge=1, le=1000, description="The start epoch is drawn from 0 up to, not including, this."
    )
    start_growth: Probability = Field(
        0.0,
        description="Share of the iterations over which the window of start epochs grows from the first alone to "
        "maxStartEpoch of them; 0: it has its whole width at once.",
    )
    loss_normalization: Literal["total", "layer"] = Field(
        "total",
        description="What the squared distance to the expert is divided by: the whole distance that the expert went, "
        "or that of each parameter tensor apart, averaged.",
    )
    target_rank: int | None = Field(
        None,
        ge=1,
        le=65536,
        description="Rank of the matrix of synthetic targets, learned as a product of two; any when absent.",
    )
    average_last: Probability = Field(
        0.25, description="Share of the iterations, the last ones, whose sets are averaged; 0: the last set is taken."
    )
    optimizer: Literal["sgd", "adam"] = Field(
        "adam",
        description="How the set is updated: the paper's SGD, or Adam, whose step sizes do not depend on the scale of "
        "the gradients.",
    )
    schedule: Literal["constant", "cosine"] = Field(
        "cosine", description="Whether the step sizes stay, or fall to zero along a cosine over the iterations."
    )
    pixel_step: float = Field(0.06, ge=0.0, le=1e9, description="Step size for the pixels.")
    target_step: float = Field(0.06, ge=0.0, le=1e9, description="Step size for the targets.")
    rate_step: float = Field(
        1e-3,
        ge=0.0,
        le=1e3,
        description="Step size for the inner learning rate, in units of the rate itself.",
    )
    momentum: Momentum = Field(0.9, description="Momentum of these three; Adam's first beta.")
    inner_optimizer: InnerSgd = Field(default_factory=InnerSgd, description="The student's optimiser.")
    kernel: Kernel = Field(default_factory=Kernel, description="Settings of krrSt.")
    warm_start: Uri | None = Field(
        None,
        description="A distilled set of the same size to start from instead of real images: a folder, an fsspec URL, "
        "or models:/NAME/VERSION in MLflow's registry. Not an alias: what it names changes.",
    )

    @model_validator(mode="after")
    def _size_or_fraction(self) -> Distill:
        if self.size is not None and self.fraction is not None:
            raise _conflict("fraction", self.fraction, "either size or fraction, not both")
        return self

    @model_validator(mode="after")
    def _start_is_pinned(self) -> Distill:
        """What an alias names changes, and then nothing would tell what a result was made from."""
        if self.registered_start is not None and not re.fullmatch(PINNED, self.registered_start):
            raise _conflict("warmStart", repr(self.warm_start), "models:/NAME/VERSION, with the number of a version")
        return self

    @model_validator(mode="after")
    def _method_has_its_own(self) -> Distill:
        if self.method == "krrSt" and self.pairs > 1:
            raise _conflict("pairs", self.pairs, "1 with method krrSt, which has no pairs")
        return self

    @property
    def registered_start(self) -> str | None:
        """The set to start from, where it is one of MLflow's registry."""
        start = self.warm_start
        return start if start is not None and start.startswith(REGISTERED) else None

    def count(self, images: int, image_size: int) -> int:
        """The number of synthetic images for a source of `images` images of that side."""
        if self.size is not None:
            return self.size
        fraction = 0.02 if self.fraction is None else self.fraction
        share = fraction * (image_size / self.side(image_size)) ** 2
        return max(1, math.floor(share * images + 1e-9))  # 0.29 * 100 is 28.999...

    def side(self, image_size: int) -> int:
        """The side at which synthetic images are kept, in pixels."""
        return image_size // self.downsampling

    def start_epochs(self, iteration: int) -> int:
        """The window of an iteration: start epochs are drawn from 0 up to, not including, this."""
        grown = self.start_growth * self.iterations
        if iteration >= grown:
            return self.max_start_epoch
        return 1 + int(iteration / grown * self.max_start_epoch)

    @property
    def reachable_epochs(self) -> int:
        """The last expert epoch that matching can ask for: (maxStartEpoch - 1) + expertGap."""
        return self.max_start_epoch - 1 + self.expert_gap


class TaskData(Section):
    """Labelled images of a downstream task."""

    uri: Uri = Field(description="Where they are; class folders or a label column give the labels.")
    format: SourceFormat = Field("auto", description="How they are stored; auto looks at the URL.")
    limit: Count | None = Field(None, description="Use only this many, drawn at random from the seed.")


class Task(Section):
    """A downstream task: linear probes are fitted on train and scored on test."""

    name: Name = Field(description="What the task is called in tables.")
    train: TaskData = Field(description="Labelled images to fit the probe on.")
    test: TaskData = Field(description="Labelled images to score it on.")
    allow_overlap: bool = Field(
        False,
        description="Whether test images may be among the training images. Without it a run fails where 1 % of the "
        "test images or more are, by their pixels at source.imageSize; fewer are noted, as natural datasets hold some "
        "images twice. Test images among the images to distil are noted, too.",
    )

    @model_validator(mode="after")
    def _test_is_not_train(self) -> Task:
        if self.train == self.test and not self.allow_overlap:
            raise _conflict("test", f"{self.test.uri!r}, as train", "other images than train's, or allowOverlap: true")
        return self


class Probe(Section):
    """The linear probe: L-BFGS on cross-entropy + ridge * ||W||^2, over features standardised by the fitted images."""

    ridges: list[Annotated[float, Field(gt=0.0, le=1e3)]] = Field(
        default_factory=lambda: [1e-4, 1e-3, 1e-2, 1e-1, 1.0],
        min_length=1,
        max_length=20,
        description="Weights of ||W||^2 to choose from, for each probe, on held-out labels.",
    )
    iterations: int = Field(2000, ge=1, le=100_000, description="Most iterations of L-BFGS.")
    tolerance: float = Field(
        1e-6,
        gt=0.0,
        le=1.0,
        description="The optimum counts as reached where no entry of the gradient is larger; if none is reached within "
        "`iterations`, the evaluation fails.",
    )

    @model_validator(mode="after")
    def _no_repeats(self) -> Probe:
        _refuse_repeats("ridges", self.ridges)
        return self


def _refuse_repeats(field: str, values: Sequence[object]) -> None:
    twice = sorted({str(value) for value in values if values.count(value) > 1})
    if twice:
        raise _conflict(field, f"{', '.join(twice)} more than once", "each value once")


def _student_architecture() -> list[Architecture]:
    return ["convnet"]


def _usual_baselines() -> list[Baseline]:
    return ["none", "start", "random", "highLoss", "full"]


_STEPS = 4000  # of pre-training, where a spec gives neither steps nor epochs


class Evaluate(Section):
    """Pre-training fresh encoders on the synthetic set and its rivals, and probing them with few labels.

    Every method has the same choices, made on held-out labels: rateFactors, the steps of the curve, probe.ridges.
    """

    tasks: list[Task] = Field(
        default_factory=list,
        max_length=100,
        description="Downstream tasks; without any, nothing is evaluated.",
    )
    label_fractions: list[Annotated[float, Field(gt=0.0, le=1.0)]] = Field(
        default_factory=lambda: [0.01, 0.05, 0.1, 0.5],
        min_length=1,
        max_length=100,
        description="Shares of a task's training labels that the probe sees; held-out ones are never among them.",
    )
    held_out: float = Field(
        0.2,
        gt=0.0,
        lt=1.0,
        description="Share of a task's training labels that no probe is fitted on: rates, steps and ridges are chosen, "
        "and champions decided, on these.",
    )
    seeds: list[Seed] = Field(
        default_factory=lambda: [0, 1, 2, 3, 4],
        min_length=1,
        max_length=1000,
        description="One encoder is pre-trained for each seed and reported on the test images; tables show mean and "
        "deviation over them. They choose nothing.",
    )
    selection_seeds: list[Seed] = Field(
        default_factory=lambda: [1000, 1001, 1002],
        min_length=1,
        max_length=100,
        description="Seeds of the encoders that choose each method's rate and steps and decide about the champion, on "
        "held-out labels; a champion needs at least 3.",
    )
    architectures: list[Architecture] = Field(
        default_factory=_student_architecture,
        min_length=1,
        max_length=3,
        description="Encoders to pre-train; the student's own comes with the student's depth, width and norm.",
    )
    width: int | None = Field(
        None,
        ge=4,
        le=1024,
        description="Channels of the first stage of the other architectures; 128 of a convnet, 64 of a ResNet when "
        "absent.",
    )
    baselines: list[Baseline] = Field(
        default_factory=_usual_baselines,
        max_length=8,
        description="Rivals of the distilled set, under the same protocol: no pre-training; what the distillation "
        "starts from, not distilled; real images that take as many bytes with their targets, drawn at random, of "
        "highest loss, by k-centre or by facility location on the targets (as SAS does); all images with the "
        "teacher's targets, or by the teacher's self-supervised objective (Barlow Twins for an imported one), at the "
        "teacher's own settings.",
    )
    epochs: Count | None = Field(
        None,
        description="Epochs of the longest pre-training, where steps is absent; a small set then trains for few steps.",
    )
    steps: Count | None = Field(
        None,
        description="Steps of the longest pre-training, counted exactly, across epochs, so that all methods take as "
        "many, however many images they train on. 4,000 when epochs is absent too.",
    )
    curve_points: int = Field(
        4,
        ge=1,
        le=20,
        description="At how many numbers of steps an encoder is probed while it trains: at the last, and after a half, "
        "a quarter, ... of it. Each method is reported at the one that is best for it on held-out labels.",
    )
    batch: int = Field(256, ge=1, le=65536, description="Images a step of pre-training.")
    momentum: Momentum = Field(0.9, description="Momentum of pre-training.")
    weight_decay: WeightDecay = Field(1e-4, description="L2 weight decay of pre-training.")
    baseline_rate: Rate | None = Field(
        None,
        description="Learning rate that rateFactors multiply for the baselines; by default the experts'. A distilled "
        "set brings its own, the learned one.",
    )
    rate_factors: list[Annotated[float, Field(gt=0.0, le=1000.0)]] = Field(
        default_factory=lambda: [0.3, 1.0, 3.0],
        min_length=1,
        max_length=20,
        description="Multiples of its rate to choose from, for each method, on held-out labels.",
    )
    probe: Probe = Field(default_factory=Probe, description="The linear probe.")

    def steps_of(self, count: int) -> int:
        """Steps of the longest pre-training on `count` images."""
        if self.fixed_steps is not None:
            return self.fixed_steps
        assert self.epochs is not None
        return self.epochs * epoch_steps(count, self.batch)

    @property
    def fixed_steps(self) -> int | None:
        """Steps of the longest pre-training of every method; None where `epochs` sets them."""
        if self.steps is None and self.epochs is not None:
            return None
        return self.steps or _STEPS

    @model_validator(mode="after")
    def _no_repeats(self) -> Evaluate:
        lists = {
            "labelFractions": self.label_fractions,
            "seeds": self.seeds,
            "selectionSeeds": self.selection_seeds,
            "architectures": self.architectures,
            "baselines": self.baselines,
            "rateFactors": self.rate_factors,
            "tasks": [task.name for task in self.tasks],
        }
        for field, values in lists.items():
            _refuse_repeats(field, values)  # type: ignore[arg-type]
        shared = sorted(set(self.seeds) & set(self.selection_seeds))
        if shared:
            found = ", ".join(str(seed) for seed in shared)
            raise _conflict("selectionSeeds", found, "seeds that are not among evaluate.seeds, which choose nothing")
        return self


class Registry(Section):
    """The MLflow model registry."""

    name: str | None = Field(
        None,
        max_length=200,
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$",
        description="Registered name of the distilled set; letters, digits, and .-_ within.",
    )
    promote: Literal["ifBetter", "always", "never"] = Field(
        "ifBetter",
        description="When the alias champion moves to the new version. With ifBetter the champion is evaluated again "
        "beside it, under this spec's evaluate, and replaced when the interval of the difference lies above 0.",
    )
    metric: str | None = Field(
        None,
        min_length=1,
        max_length=250,
        description="Metric that ifBetter compares, on held-out labels, higher being better: accuracy (of the "
        "distilled set, mean over all tasks, architectures and label fractions), "
        "accuracy/TASK/ARCHITECTURE/FRACTION, recovered_gap or recovered_gap/TASK/ARCHITECTURE/FRACTION; accuracy "
        "when absent. A recovered gap compares only sets that were distilled with the same targets.",
    )
    confidence: float = Field(
        0.95,
        ge=0.5,
        le=0.999,
        description="Level of the one-sided t-interval that ifBetter takes of the difference to the champion, over at "
        "least 3 selection seeds; a set that is no better is promoted with probability 1 - confidence at most.",
    )


class Tracking(Section):
    """MLflow tracking."""

    enabled: bool = Field(True, description="Whether runs are tracked.")
    uri: Uri | None = Field(
        None,
        description="MLflow tracking server or store; when absent MLFLOW_TRACKING_URI, else mlflow.db in the "
        "folder that the command is run in.",
    )
    experiment: str = Field("limbeck", min_length=1, max_length=250, description="MLflow experiment.")
    system_metrics: bool = Field(False, description="Whether the machine's load is tracked beside the run.")


class Toleration(Section):
    """A Kubernetes toleration."""

    key: str | None = Field(None, min_length=1, max_length=317, description="Taint that is tolerated; all when absent.")
    operator: Literal["Equal", "Exists"] = Field("Equal", description="Whether the taint's value matters.")
    value: str | None = Field(None, max_length=63, description="Value of the taint, with operator Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        None, description="Effect that is tolerated; all when absent."
    )
    toleration_seconds: int | None = Field(
        None, ge=0, le=2**31 - 1, description="How long NoExecute is tolerated; for ever when absent."
    )

    @model_validator(mode="after")
    def _as_kubernetes_has_it(self) -> Toleration:
        if self.operator == "Exists" and self.value is not None:
            raise _conflict("value", repr(self.value), "no value with operator Exists")
        if self.operator == "Equal" and self.key is None:
            raise _conflict("key", "nothing", "a key, or operator Exists")
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            raise _conflict("tolerationSeconds", self.toleration_seconds, "only with effect NoExecute")
        return self


def _tolerations() -> list[Toleration]:
    return []


class RayNode(Section):
    """Pods of one kind in a Ray cluster."""

    cpu: Quantity = Field("2", description="CPU cores of a pod, as a Kubernetes quantity.")
    memory: Quantity = Field("8Gi", description="Memory of a pod, as a Kubernetes quantity.")
    shared_memory: Quantity = Field("2Gi", description="Size of /dev/shm, for Ray's object store; part of memory.")
    scratch: Quantity = Field("20Gi", description="Size of /tmp, for logs and for what is fetched from a bucket.")
    node_selector: dict[str, str] = Field(default_factory=dict, description="Labels of the nodes that it may run on.")
    tolerations: list[Toleration] = Field(
        default_factory=_tolerations, max_length=100, description="Taints of the nodes that it may run on."
    )


class RayWorkerGroup(RayNode):
    """Workers of one kind, which KubeRay scales as one."""

    name: Name = Field("workers", description="Name of the group.")
    replicas: int = Field(1, ge=0, le=4096, description="Pods at the start.")
    min_replicas: int | None = Field(None, ge=0, le=4096, description="Fewest pods; replicas when absent.")
    max_replicas: int | None = Field(None, ge=1, le=4096, description="Most pods; replicas when absent.")
    gpus: int = Field(0, ge=0, le=64, description="GPUs of a pod.")
    gpu_resource: str = Field(
        "nvidia.com/gpu", min_length=1, max_length=317, description="Kubernetes resource that counts the GPUs."
    )
    gpu_type: str | None = Field(
        None, min_length=1, max_length=63, description="Kind of GPU: the value of the node label gpuTypeLabel."
    )
    gpu_type_label: str = Field(
        "nvidia.com/gpu.product", min_length=1, max_length=317, description="Node label that tells the kind of GPU."
    )

    @model_validator(mode="after")
    def _replicas_in_order(self) -> RayWorkerGroup:
        if not self.fewest <= self.replicas <= self.most:
            allowed = f"minReplicas {self.fewest} to maxReplicas {self.most}"
            raise _conflict("replicas", self.replicas, allowed)
        if self.gpu_type is not None and not self.gpus:
            raise _conflict("gpuType", repr(self.gpu_type), "only where gpus is at least 1")
        return self

    @property
    def fewest(self) -> int:
        """Fewest pods."""
        return self.replicas if self.min_replicas is None else self.min_replicas

    @property
    def most(self) -> int:
        """Most pods."""
        return max(1, self.replicas) if self.max_replicas is None else self.max_replicas


class RayCluster(Section):
    """A KubeRay RayCluster that lives as long as the run."""

    image: str | None = Field(
        None, min_length=1, max_length=500, description="Image of its pods; execution.image when absent."
    )
    head: RayNode = Field(default_factory=RayNode, description="The head; no experts are trained on it.")
    worker_groups: list[RayWorkerGroup] = Field(
        default_factory=lambda: [RayWorkerGroup()], min_length=1, max_length=32, description="The workers."
    )
    autoscaling: bool = Field(
        False, description="Whether Ray's autoscaler moves each group between minReplicas and maxReplicas."
    )
    idle_timeout_seconds: int = Field(
        60, ge=1, le=86_400, description="With autoscaling, how long a worker idles before it goes."
    )
    authentication: Literal["token", "disabled"] = Field(
        "token", description="Whether the cluster asks for a token, which KubeRay keeps in a secret of its name."
    )

    @model_validator(mode="after")
    def _names_once(self) -> RayCluster:
        names = [group.name for group in self.worker_groups]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise _conflict("workerGroups", f"{', '.join(twice)} more than once", "each name once")
        return self


class Ray(Section):
    """The Ray workers that ingest, experts, and distill with several pairs are fanned out over."""

    address: Uri | None = Field(
        None,
        description="A running cluster: ray://HOST:10001, HOST:6379 from one of its nodes, http://HOST:8265 as a job, "
        "or auto. Without one, limbeck run --workers starts Ray on this machine.",
    )
    workers: int | None = Field(
        None, ge=1, le=4096, description="How many workers; by default as many as the cluster has room for."
    )
    min_workers: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Fewest to go on with when nodes are lost or not there yet; by default all of them.",
    )
    cpus_per_worker: Annotated[float, Field(gt=0.0, le=1024.0)] | None = Field(
        None, description="CPU cores that a worker reserves; by default the threads of an expert."
    )
    gpus_per_worker: Annotated[float, Field(ge=0.0, le=64.0)] | None = Field(
        None,
        description="GPUs that a worker reserves; by default 1 where the cluster has any, a share on this machine. "
        "Those of ingest reserve none.",
    )
    resources: dict[str, Annotated[float, Field(gt=0.0, le=1e15)]] = Field(
        default_factory=dict, description="Other Ray resources that a worker reserves."
    )
    accelerator_type: str | None = Field(
        None, min_length=1, max_length=63, description="Ray's name for the kind of accelerator to run on, such as H100."
    )
    max_failures: int = Field(
        10,
        ge=0,
        le=100_000,
        description="How often workers may die in a stage, preempted nodes aside; as often they may fail to start "
        "again.",
    )
    start_timeout_seconds: int = Field(
        10,
        ge=1,
        le=86_400,
        description="How long to wait for the cluster to have room; raise it where an autoscaler must first add nodes.",
    )
    cluster: RayCluster | None = Field(None, description="A KubeRay RayCluster to create for this run.")

    @model_validator(mode="after")
    def _one_place(self) -> Ray:
        if self.address is not None and self.cluster is not None:
            raise _conflict("cluster", "a cluster and an address", "one of them")
        if self.min_workers is not None and (self.workers is None or self.min_workers > self.workers):
            raise _conflict("minWorkers", self.min_workers, "at most workers, which must be given too")
        return self


class Resources(Section):
    """What a stage's pod asks for."""

    cpu: Quantity | None = Field(None, description="CPU cores, as a Kubernetes quantity.")
    memory: Quantity | None = Field(None, description="Memory, as a Kubernetes quantity.")
    gpus: int | None = Field(None, ge=0, le=1024, description="Accelerators.")
    gpu_resource: str = Field(
        "nvidia.com/gpu", min_length=1, max_length=317, description="Kubernetes resource that counts the accelerators."
    )
    shared_memory: Quantity | None = Field(
        None, description="Size of /dev/shm, as a Kubernetes quantity; part of memory. The node's default when absent."
    )
    node_selector: dict[str, str] = Field(default_factory=dict, description="Labels of the nodes that it may run on.")
    tolerations: list[Toleration] = Field(
        default_factory=_tolerations, max_length=100, description="Taints of the nodes that it may run on."
    )


class Secret(Section):
    """A Kubernetes secret that pods see: as variables of their environment, or as files."""

    name: Name = Field(description="Name of the secret, in the namespace of the pods.")
    environment: dict[str, str] = Field(
        default_factory=dict, description="Variables, such as MLFLOW_TRACKING_TOKEN, and the keys that they are from."
    )
    mount_path: str | None = Field(
        None, pattern="^/", max_length=1000, description="Folder that its keys appear in as files."
    )

    @model_validator(mode="after")
    def _seen(self) -> Secret:
        if not self.environment and self.mount_path is None:
            raise _conflict("name", f"{self.name} and nothing more", "environment, mountPath or both")
        return self


class Volume(Section):
    """A Kubernetes volume that pods see, for sources and results that are in no bucket."""

    claim: Name = Field(description="Name of the PersistentVolumeClaim, which several pods must be able to use.")
    mount_path: str = Field(pattern="^/", max_length=1000, description="Folder that it appears in.")


StageName = Literal["ingest", "teacher", "targets", "trajectories", "select", "distill", "evaluate", "register"]


class Engine(Section):
    """How training steps are computed; no result depends on it beyond rounding."""

    compile: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Whether steps are compiled; auto compiles on the CPU, where the work is long enough to repay the "
        "minute that it takes.",
    )
    memory_budget: Quantity | None = Field(
        None,
        description="Memory for holding the graphs of inner steps, which saves computing them twice, as a Kubernetes "
        "quantity; 0 holds none. By default half of what is free on an accelerator, 512Mi on the CPU.",
    )


class StorageOption(Section):
    """One option of a filesystem: its value, or where that is looked up when the filesystem is opened."""

    name: str = Field(
        min_length=1,
        max_length=64,
        pattern="^[A-Za-z_][A-Za-z0-9_]*$",
        description="Argument of the fsspec filesystem, such as key, secret, token, endpoint_url.",
    )
    value: str | None = Field(
        None,
        max_length=256,
        description="The value itself, read as JSON where it is JSON (true, 30, an object), else as text; never a "
        "secret.",
    )
    environment: str | None = Field(
        None,
        max_length=200,
        pattern="^[A-Za-z_][A-Za-z0-9_]*$",
        description="Variable of the environment that holds it.",
    )
    file: str | None = Field(
        None, min_length=1, max_length=1000, description="File that holds it, such as a mounted secret's."
    )

    @model_validator(mode="after")
    def _one_place(self) -> StorageOption:
        given = [name for name in ("value", "environment", "file") if getattr(self, name) is not None]
        if len(given) != 1:
            raise _conflict("value", " and ".join(given) or "nothing", "one of value, environment and file")
        return self

    @model_validator(mode="after")
    def _no_secret_in_the_text(self) -> StorageOption:
        text = self.value
        if text is None or text in NO_SECRETS:
            return self
        if re.search(SECRET_NAME, self.name) or re.search(SECRET_INSIDE, text):
            found = f"the value of {self.name} itself"
            raise _conflict("value", found, "environment or file, so that no secret stands in the spec")
        return self

    @property
    def literal(self) -> Any:
        """What `value` means."""
        assert self.value is not None
        try:
            return json.loads(self.value)
        except ValueError:
            return self.value


# An API server takes no rule that could be dear for as many options as there may be: that no secret is among them.
_MOST_PLACES, _MOST_OPTIONS = 10, 16
NO_SECRETS = ("", "anon", "cloud", "google_default")  # what gcsfs takes for a token that is none


class StorageOptions(Section):
    """How the places whose URLs begin with a prefix are reached, where the usual credentials are not enough."""

    prefix: Uri = Field(description="Beginning of the URLs, such as s3://bucket/; of several that fit, the longest.")
    options: list[StorageOption] = Field(
        min_length=1, max_length=_MOST_OPTIONS, description="Arguments of the filesystem."
    )

    @model_validator(mode="after")
    def _names_once(self) -> StorageOptions:
        names = [option.name for option in self.options]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise _conflict("options", f"{', '.join(twice)} more than once", "each name once")
        return self


class Execution(Section):
    """Where and how it is run.

    Of this a run on one machine looks at engine, ray, checkpointSeconds, storageOptions and cacheSize.
    """

    backend: Literal["local", "job", "kubeflow"] = Field(
        "local", description="Who runs the stages; on a cluster, local is a Job as well."
    )
    image: str | None = Field(None, min_length=1, max_length=500, description="Container image.")
    service_account: Name | None = Field(None, description="Service account of the pods.")
    ray: Ray = Field(default_factory=Ray, description="The Ray workers that ingest and experts are fanned out over.")
    checkpoint_seconds: float = Field(
        20.0, ge=0.0, le=86_400.0, description="Time between saves of what is being trained; a kill costs no more."
    )
    engine: Engine = Field(default_factory=Engine, description="How training steps are computed.")
    storage_options: list[StorageOptions] = Field(
        default_factory=list[StorageOptions],
        max_length=_MOST_PLACES,
        description="How buckets are reached, where the usual credentials of a machine or pod are not enough.",
    )
    cache_size: Quantity | None = Field(
        None,
        description="Most that copies of a bucket's results may take on the disk of a machine, as a Kubernetes "
        "quantity: those that nothing uses go first, the least recently used before others; by default half of what "
        "the disk could hold.",
    )
    resources: dict[StageName, Resources] = Field(default_factory=dict, description="Resources of the pods, by stage.")
    secrets: list[Secret] = Field(
        default_factory=list[Secret], max_length=100, description="Secrets that the pods see."
    )
    volumes: list[Volume] = Field(
        default_factory=list[Volume], max_length=100, description="Volumes that the pods see."
    )
    image_pull_secrets: list[Name] = Field(
        default_factory=list[Name], max_length=20, description="Secrets that the image is pulled with."
    )
    suspend: bool = Field(False, description="Do not start; stop when running.")
    active_deadline_seconds: Count | None = Field(
        None, description="Longest time that a run may take; on Kubeflow, each of its tasks."
    )
    backoff_limit: int = Field(3, ge=0, le=100, description="Retries before the run has failed.")
    ttl_seconds_after_finished: int | None = Field(
        None, ge=0, le=2**31 - 1, description="Delete the finished run after this time."
    )


class DistillationSpec(Section):
    """All settings of a distillation."""

    preset: Preset = Field(
        "recommended",
        description="What fields that are not given say: the default that stands beside each, or the settings of the "
        "MKDT paper and its authors' code, published for 2 and 5 % at 32x32 pixels and 2 % at 64x64; elsewhere those "
        "of 2 % at 32x32 are taken, which is noted.",
    )
    source: Source = Field(description="The unlabelled images to distil.")
    output: Output = Field(default_factory=Output, description="Where results go.")
    seed: Seed = Field(0, description="All randomness comes from it, but for that of distill.seed and evaluate.seeds.")
    teacher: Teacher = Field(default_factory=Teacher, description="The encoder that gives the targets.")
    targets: Targets = Field(default_factory=Targets, description="What students are trained to give.")
    student: Student = Field(default_factory=Student, description="The network that is trained on them.")
    trajectories: Trajectories = Field(default_factory=Trajectories, description="The expert trajectories.")
    distill: Distill = Field(default_factory=Distill, description="The optimisation of the synthetic set.")
    evaluate: Evaluate = Field(default_factory=Evaluate, description="How the set is judged.")
    registry: Registry = Field(default_factory=Registry, description="The MLflow model registry.")
    tracking: Tracking = Field(default_factory=Tracking, description="MLflow tracking.")
    execution: Execution = Field(default_factory=Execution, description="How a cluster runs it.")

    @model_validator(mode="before")
    @classmethod
    def _preset_completes(cls, document: Any) -> Any:
        return completed(document) if isinstance(document, dict) else document

    @model_validator(mode="after")
    def _sections_agree(self) -> DistillationSpec:
        if self.distill.side(self.source.image_size) < 2:
            allowed = f"at most half of source.imageSize, which is {self.source.image_size}"
            raise _conflict("distill.downsampling", self.distill.downsampling, allowed)
        needed, epochs = self.distill.reachable_epochs, self.trajectories.epochs
        if epochs is not None and epochs < needed:
            allowed = f"at least {needed}: distill.maxStartEpoch - 1 + distill.expertGap"
            raise _conflict("trajectories.epochs", epochs, allowed)
        limit = self.source.limit
        if limit is not None and limit < 2:
            raise _conflict("source.limit", limit, "at least 2 images")
        if limit is not None and self.distill.size is not None and self.distill.size > limit:
            raise _conflict("distill.size", self.distill.size, f"at most source.limit, which is {limit}")
        self._networks_fit_the_images()
        return self

    def _networks_fit_the_images(self) -> None:
        size, student = self.source.image_size, self.student
        networks: list[tuple[str, Architecture, int | None, Norm]] = [
            ("student", student.architecture, student.depth, student.norm)
        ]
        teacher = self.teacher
        if teacher.checkpoint is None or teacher.checkpoint.endswith(".safetensors"):  # others may be anything
            networks.append(("teacher", teacher.architecture, teacher.depth, teacher.norm))
        for position, architecture in enumerate(self.evaluate.architectures):
            if architecture == "convnet" != student.architecture:
                networks.append((f"evaluate.architectures.{position}", "convnet", None, "instance"))
        for section, architecture, chosen, norm in networks:
            if architecture == "convnet":
                depth = convnet_depth(size, chosen)
                if size % 2**depth:
                    found = f"{depth} blocks, each halving {size}x{size} pixels"
                    raise _conflict(f"{section}.depth", found, f"source.imageSize must be a multiple of {2**depth}")
            elif norm == "instance" and size <= 8:
                found = f"instance at {size}x{size} pixels, of which a ResNet leaves one to normalise"
                raise _conflict(f"{section}.norm", found, "batch or none, or a larger source.imageSize")
        if student.norm == "batch":
            smallest = {
                "trajectories.batch": self.trajectories.batch,
                "distill.innerBatch": self.distill.inner_batch,
                "distill.size": self.distill.size or 2,
            }
            for field, images in smallest.items():
                if images < 2:
                    raise _conflict(field, images, "at least 2, for a student with batch norm")

    @property
    def ssl_teacher(self) -> Teacher:
        """How the baseline fullSsl is trained: as the teacher; by Barlow Twins where that is imported."""
        if self.teacher.checkpoint is None:
            return self.teacher
        return self.teacher.model_copy(update={"algorithm": "barlowTwins", "checkpoint": None})

    @property
    def preset_note(self) -> str | None:
        """What a user should know of the preset at this size; None where it was made for it."""
        return unpublished(self.preset, self.source.image_size, self.distill.size, self.distill.fraction)

    def content(self) -> dict[str, Any]:
        """The settings that shape the distilled set, as in a file: not where it goes, or who makes it."""
        elsewhere = ("output", "tracking", "execution")
        return {name: value for name, value in self.wire().items() if name not in elsewhere}

    @property
    def distillation_seed(self) -> int:
        """The seed of the start's choice and of the stage distill."""
        return self.seed if self.distill.seed is None else self.distill.seed

    @property
    def expert_epochs(self) -> int:
        """Epochs that every expert is trained for."""
        return self.trajectories.epochs or self.distill.reachable_epochs


class SharedSettings(Section):
    """What all specs of a cluster are given that do not say it themselves."""

    output: Output = Field(default_factory=Output, description="Where results go.")
    tracking: Tracking = Field(default_factory=Tracking, description="MLflow tracking.")
    execution: Execution = Field(default_factory=Execution, description="How a cluster runs it.")


class Metadata(BaseModel):
    """Kubernetes object metadata; only the name matters here."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    name: Name = Field(description="Name of the run, a DNS label.")
    labels: dict[str, str] = Field(default_factory=dict, description="Kubernetes labels.")
    annotations: dict[str, str] = Field(default_factory=dict, description="Kubernetes annotations.")


class Distillation(BaseModel):
    """One distillation: a large unlabelled dataset into a small synthetic one."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", strict=True, frozen=True)

    api_version: Literal["limbeck.dev/v1alpha1"] = Field(description="Version of this format.")
    kind: Literal["Distillation"] = Field(description="Kind of the object.")
    metadata: Metadata = Field(description="Name and labels.")
    spec: DistillationSpec = Field(description="The settings.")
    status: dict[str, Any] | None = Field(None, exclude=True, description="Ignored: what a cluster reports.")


_NUMBER = r"(\*|[0-9]{1,4}|[A-Za-z]{3})"
_CRON = rf"{_NUMBER}(-{_NUMBER})?(/[0-9]{{1,4}})?"
_CRON_FIELD = rf"({_CRON}|[Ll]|[A-Za-z0-9]{{1,3}}#[1-5L])(,({_CRON}|[Ll]|[A-Za-z0-9]{{1,3}}#[1-5L]))*"
_CRON_PATTERN = rf"^(@(hourly|daily|midnight|weekly|monthly|yearly|annually)|{_CRON_FIELD}( +{_CRON_FIELD}){{4}})$"


class DistillationTemplate(Section):
    """What a scheduled distillation creates each time."""

    labels: dict[str, Annotated[str, Field(max_length=63)]] = Field(
        default_factory=dict, max_length=64, description="Labels of each Distillation."
    )
    annotations: dict[str, Annotated[str, Field(max_length=1024)]] = Field(
        default_factory=dict, max_length=64, description="Annotations of each Distillation."
    )
    spec: DistillationSpec = Field(description="The settings of each Distillation.")


class ScheduledDistillationSpec(Section):
    """A distillation again and again, as a CronJob is a Job again and again."""

    schedule: Annotated[str, Field(min_length=1, max_length=200, pattern=_CRON_PATTERN)] = Field(
        description="When: minute hour day month weekday, or @hourly, @daily, @weekly, @monthly, @yearly."
    )
    time_zone: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$")] = (
        Field("Etc/UTC", description="IANA time zone that the schedule is in.")
    )
    concurrency_policy: Literal["Allow", "Forbid", "Replace"] = Field(
        "Forbid",
        description="When one is due while another still runs: run both, leave the new one out, or end the old one.",
    )
    starting_deadline_seconds: int | None = Field(
        None,
        ge=10,
        le=2**31 - 1,
        description="How late one may still start; without it, the latest that was missed always does.",
    )
    successful_runs_history_limit: int = Field(3, ge=0, le=1000, description="How many that are complete are kept.")
    failed_runs_history_limit: int = Field(1, ge=0, le=1000, description="How many that have failed are kept.")
    suspend: bool = Field(False, description="Start nothing; what runs goes on.")
    only_if_source_changed: bool = Field(
        True,
        description="Leave a time out when sources and settings are those of the last one that completed; a trigger "
        "by hand runs anyway.",
    )
    warm_start: Literal["never", "champion"] = Field(
        "never",
        description="What the synthetic images start from: real images, or the champion of registry.name at that time, "
        "where there is one of the same size.",
    )
    template: DistillationTemplate = Field(description="What is created each time.")

    @model_validator(mode="after")
    def _champions_fit(self) -> ScheduledDistillationSpec:
        spec = self.template.spec
        if self.warm_start == "champion":
            if spec.registry.name is None:
                raise _conflict("warmStart", "champion", "only with template.spec.registry.name, whose champion it is")
            if spec.distill.size is None:
                raise _conflict(
                    "warmStart", "champion", "only with template.spec.distill.size: a fraction changes with the source"
                )
            if spec.distill.warm_start is not None:
                raise _conflict(
                    "template.spec.distill.warmStart", repr(spec.distill.warm_start), "nothing beside warmStart"
                )
        return self


class ScheduledMetadata(Metadata):
    """Kubernetes object metadata of a schedule, from whose name those of its distillations are made."""

    name: Annotated[str, Field(min_length=1, max_length=52, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")] = Field(
        description="Name of the schedule, a DNS label of at most 52 characters."
    )


class ScheduledDistillation(BaseModel):
    """Distillations at the times of a schedule, on Kubernetes."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", strict=True, frozen=True)

    api_version: Literal["limbeck.dev/v1alpha1"] = Field(description="Version of this format.")
    kind: Literal["ScheduledDistillation"] = Field(description="Kind of the object.")
    metadata: ScheduledMetadata = Field(description="Name and labels.")
    spec: ScheduledDistillationSpec = Field(description="The settings.")
    status: dict[str, Any] | None = Field(None, exclude=True, description="Ignored: what a cluster reports.")


def epoch_steps(count: int, batch: int) -> int:
    """Steps of an epoch of `count` images: a last batch shorter than the rest counts, unless it is one image.

    A single image gives batch norm nothing to normalise by at one pixel.
    """
    whole, rest = divmod(count, min(batch, count))
    return whole + (rest > 1)


def convnet_depth(image_size: int, depth: int | None) -> int:
    """Blocks of a ConvNet at `image_size`: `depth`, or as many halvings as leave 4x4 pixels (3 at 32, 4 at 64)."""
    return depth if depth is not None else max(1, int(math.log2(image_size)) - 2)
