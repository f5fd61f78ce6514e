"""The configuration of a run: type, bounds, default and meaning of every key. Imports no framework.

The docstrings are the help texts of the command line, which makes options of these classes.
Paths are relative to the working directory, wherever they are written; ~ and $NAME in them are replaced.
"""

from dataclasses import dataclass, field
from typing import Literal

from dvt.errors import ConfigError
from dvt.models.variants import ModelConfig, model_config
from dvt.value_checks import PATH, bounds, check_fields

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

SMALLEST_STD = 1e-6  # pixels are divided by it in float32
TEMPERATURES = (0.01, 1000.0)  # of distillation; beyond them float32 logits overflow or lose all differences

# More is a typing mistake: tables and batches of this size fit no machine.
MOST_EPOCHS = 100_000
MOST_IMAGES_PER_BATCH = 2**20
MOST_PIXELS_PER_SIDE = 2**14

DatasetName = Literal["image_folder", "cifar10", "cifar100", "fashion_mnist", "fashion_mnist_scale"]
DeviceTarget = Literal["auto", "CPU", "GPU", "Ascend"]
AmpLevel = Literal["O0", "O1", "O2"]


@dataclass
class ModelSection:
    """Which DVT to build. A key left at null keeps the variant's own value.

    Args:
        name: Variant, one of those that `dvt info` lists.
        num_classes: Number of classes; null takes it from the data set.
        image_size: Side of the square input image, in pixels.
        in_channels: Channels of the input image; null takes it from the data set.
        grid_sizes: Tokens per side at each exit; its length is the number of exits.
        embed_dim: Width C of the tokens.
        depth: Number L of blocks per exit.
        num_heads: Number H of attention heads.
        mlp_hidden: Hidden width of the blocks' MLP.
        feature_reuse: Hand the features of an exit on to the next.
        relation_reuse: Hand the attention relations of an exit on to the next.
        drop_path_rate: Stochastic depth of the last block; earlier blocks rise linearly to it.
        dropout_rate: Dropout after positions, attention and both layers of the MLP; 0 in all released models.
        soft_splits: T2T only: [kernel, stride, padding] of the first soft split, one per exit.
        resize_sides: Intermediate side of the resize between grids, one per hand-over.
        init_std: Standard deviation of the random weights at the start; narrow models learn faster from a larger one.
        share_blocks: Share the weights of the blocks between the exits, except those that feature reuse widens.
        average_exits: In evaluation, answer with the mean of the probabilities of the exits passed so far.
    """

    name: str = "dvt_t2t_vit_12"
    num_classes: int | None = None
    image_size: int | None = None
    in_channels: int | None = None
    grid_sizes: list[int] | None = None
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    mlp_hidden: int | None = None
    feature_reuse: bool | None = None
    relation_reuse: bool | None = None
    drop_path_rate: float | None = None
    dropout_rate: float | None = None
    soft_splits: list[list[int]] | None = None
    resize_sides: list[int] | None = None
    init_std: float | None = None
    share_blocks: bool | None = None
    average_exits: bool | None = None

    def __post_init__(self) -> None:
        check_fields(self, "model.", bounds_from=ModelConfig)

    @property
    def input_size(self) -> int:
        """Side of the input image in pixels, known before the data set is."""
        return ModelConfig.image_size if self.image_size is None else self.image_size

    def check(self) -> None:
        """Raises ConfigError for what is wrong whatever the data set; costs nothing."""
        self.resolve(self.num_classes or 1, self.in_channels or 1)

    def resolve(self, num_classes: int, in_channels: int) -> ModelConfig:
        """The checked model configuration, with what the data set knows filled in."""
        known = {"num_classes": num_classes, "in_channels": in_channels}
        for key, value in known.items():
            if getattr(self, key) not in (None, value):
                given = f"model.{key} is {getattr(self, key)}, but that of the data set is {value}"
                raise ConfigError(f"{given}; leave it out, or give other data")
        return model_config(**vars(self) | known)


@dataclass
class DataSection:
    """Which images, and how they become model inputs.

    Args:
        dataset: image_folder wants train/CLASS/* and val/CLASS/* below data.path, or MindRecord files made of them.
        path: Folder that holds the data set; null looks in the usual places (Fashion-MNIST only).
        class_map: Evaluation of image_folder only: JSON or YAML file that says which class of the checkpoint a folder
            shows (folder -> class index or name), where that does not follow from its name.
        train_images: Use at most this many training images, drawn evenly per class; null for all.
        val_images: Use at most this many validation images, drawn evenly per class; null for all.
        calibration_images: Size of the slice of the training set on which thresholds are found.
        hold_out_calibration: Keep that slice out of training; if false, its images were trained on, as published.
        resize_size: Shorter side before the centre crop in evaluation; null takes image_size * 256 / 224.
        canvas_size: fashion_mnist_scale only: side of the canvas that items are drawn on; null takes image_size.
        item_sizes: fashion_mnist_scale only: sides of the items; null takes a quarter, a half and all of the canvas.
        mean: Mean per channel, of pixels in 0..1; null takes the data set's own.
        std: Standard deviation per channel, of pixels in 0..1; null takes the data set's own.
        workers: Loader processes or threads; null takes one per core, at most 8, shared by the ranks of this machine.
        worker_type: Prepare training images in processes or threads; auto takes processes for epochs that are long.
        on_bad_image: At an image that cannot be read, fail ends the run; skip names it in the log and goes on, in
            training with the next readable image in its place, in evaluation without it.
        max_bad_images: With skip, the most bad images of a split: below 1 a share (at least one), from 1 up a number.
    """

    dataset: DatasetName = "image_folder"
    path: str | None = field(default=None, metadata=PATH)
    class_map: str | None = field(default=None, metadata=PATH)
    train_images: int | None = field(default=None, metadata=bounds(1))
    val_images: int | None = field(default=None, metadata=bounds(1))
    calibration_images: int = field(default=50000, metadata=bounds(1))
    hold_out_calibration: bool = False
    resize_size: int | None = field(default=None, metadata=bounds(1, MOST_PIXELS_PER_SIDE))
    canvas_size: int | None = field(default=None, metadata=bounds(1, MOST_PIXELS_PER_SIDE))
    item_sizes: list[int] | None = field(default=None, metadata=bounds(1, MOST_PIXELS_PER_SIDE))
    mean: list[float] | None = None
    std: list[float] | None = field(default=None, metadata=bounds(SMALLEST_STD))
    workers: int | None = field(default=None, metadata=bounds(1, 1024))
    worker_type: Literal["auto", "process", "thread"] = "auto"
    on_bad_image: Literal["fail", "skip"] = "fail"
    max_bad_images: float = field(default=0.01, metadata=bounds(above=0))

    def __post_init__(self) -> None:
        check_fields(self, "data.")
        drawn = self.dataset == "fashion_mnist_scale"
        folder = self.dataset == "image_folder"
        effects = {"canvas_size": drawn, "item_sizes": drawn, "resize_size": not drawn, "class_map": folder}
        for key, has_effect in effects.items():
            if getattr(self, key) is not None and not has_effect:
                raise ConfigError(f"data.{key} is set, but has no effect on data.dataset {self.dataset}; leave it out")
        if self.max_bad_images > 1 and self.max_bad_images % 1:
            given = f"data.max_bad_images is {self.max_bad_images:g}"
            raise ConfigError(f"{given}; it must be a share of at most 1 or a whole number")


@dataclass
class AugmentSection:
    """How training images are varied, on top of crop and flip.

    Args:
        policy: Operations on the cropped image: RandAugment as published, AutoAugment's ImageNet policy, or none.
        interpolation: Of the random resized crop; random draws bilinear or bicubic for each image.
        erasing: Share of the images in which one block is replaced by noise, after mixing.
        mixup: Alpha of mixup; 0 switches it off. With cutmix on as well, each batch draws one of the two.
        cutmix: Alpha of cutmix; 0 switches it off.
    """

    policy: Literal["none", "rand-m9-mstd0.5-inc1", "autoaugment"] = "none"
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    erasing: float = field(default=0.0, metadata=bounds(0, 1))
    mixup: float = field(default=0.0, metadata=bounds(0))
    cutmix: float = field(default=0.0, metadata=bounds(0))

    def __post_init__(self) -> None:
        check_fields(self, "augment.")


@dataclass
class TrainSection:
    """How to train: optimizer, cosine schedule, sum of the exits' cross-entropies.

    Args:
        epochs: Passes over the training images, warm-up included and cool-down not.
        batch_size: Images per device and pass through the model.
        accumulation_steps: Batches whose gradients are averaged into one step of the optimizer.
        optimizer: adamw, or sgd with momentum.
        momentum: Momentum of sgd.
        learning_rate: Peak learning rate. With backbone_lr_scale, that of the heads.
        base_batch_size: Images per step that learning_rate is meant for, else scaled in proportion; null: never scaled.
        backbone_lr_scale: Learning rate of all but the heads and what init_checkpoint lacked, as a share of theirs.
        min_learning_rate: Learning rate at the end of the cosine.
        warmup_epochs: Epochs of linear warm-up from warmup_learning_rate; may be a fraction.
        warmup_learning_rate: Learning rate of the first step of the warm-up.
        cooldown_epochs: Further epochs at min_learning_rate.
        schedule_unit: Change the learning rate every step or every epoch (as published).
        weight_decay: Weight decay of matrices, decoupled with adamw; biases and 1-D parameters are not decayed.
        clip_norm: Largest global norm of the gradients, above which they are scaled down; null: not clipped.
        label_smoothing: Share of the target spread evenly over all classes.
        exit_weights: Weight of each exit's loss; null for 1 each, as published.
        exit_lr_scales: Learning rate of each exit, as a share; 0 leaves an exit as it is. null for 1 each.
        distillation: Weight of a second part of the loss of every exit but the last: how far its probabilities are from
            those of the last exit. 0, as published, switches it off.
        distillation_temperature: Logits are divided by it for distillation; higher shows more of improbable classes.
        coarse_first_epochs: Kept for configurations of 0.1.0; a new run needs 0.
        ema_decay: Decay per step of the moving average of the weights (published: 0.99996); 0 switches it off.
        amp_level: O0 computes in float32; O1 takes float16 for the matrix products; O2 also between them. Softmax,
            LayerNorm, the performers, the loss and the weights stay float32.
        loss_scale: Initial loss scale with O1 and O2; halved when gradients overflow.
        loss_scale_window: Steps without an overflow after which the loss scale is doubled.
        max_failed_batches: Stop after this many batches in a row whose loss is not finite.
        recompute: Compute the blocks again in the backward pass instead of keeping what they computed.
        init_checkpoint: Weights to start from: a checkpoint of this package, or a PyTorch file of a DVT, DeiT or
            T2T-ViT. What does not fit (such as a head of other classes) starts from random values and is listed.
        init_exits: How many exits, the first ones, start from init_checkpoint; null: all.
        checkpoint_every_epochs: Epochs from one checkpoint to the next; the last epoch is always saved.
        eval_every_epochs: Epochs from one evaluation of all exits on the validation images to the next; 0: never.
        eval_resize_size: data.resize_size of these evaluations; null takes data.resize_size.
        keep_best: How many checkpoints to keep besides the newest, best last-exit accuracy first.
        dataset_sink_mode: Send batches to the device ahead of time (Ascend and GPU; without effect on the CPU).
    """

    epochs: int = field(default=300, metadata=bounds(1, MOST_EPOCHS))
    batch_size: int = field(default=128, metadata=bounds(1, MOST_IMAGES_PER_BATCH))
    accumulation_steps: int = field(default=1, metadata=bounds(1, MOST_IMAGES_PER_BATCH))
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = field(default=0.9, metadata=bounds(0, below=1))
    learning_rate: float = field(default=5e-4, metadata=bounds(0))
    base_batch_size: int | None = field(default=None, metadata=bounds(1))
    backbone_lr_scale: float = field(default=1.0, metadata=bounds(0))
    min_learning_rate: float = field(default=1e-5, metadata=bounds(0))
    warmup_epochs: float = field(default=20, metadata=bounds(0))
    warmup_learning_rate: float = field(default=1e-6, metadata=bounds(0))
    cooldown_epochs: int = field(default=0, metadata=bounds(0, MOST_EPOCHS))
    schedule_unit: Literal["step", "epoch"] = "epoch"
    weight_decay: float = field(default=0.05, metadata=bounds(0))
    clip_norm: float | None = field(default=None, metadata=bounds(above=0))
    label_smoothing: float = field(default=0.1, metadata=bounds(0, below=1))
    exit_weights: list[float] | None = field(default=None, metadata=bounds(0))
    exit_lr_scales: list[float] | None = field(default=None, metadata=bounds(0))
    distillation: float = field(default=0.0, metadata=bounds(0))
    distillation_temperature: float = field(default=1.0, metadata=bounds(*TEMPERATURES))
    coarse_first_epochs: int = field(default=0, metadata=bounds(0, MOST_EPOCHS))
    ema_decay: float = field(default=0.0, metadata=bounds(0, below=1))
    amp_level: AmpLevel = "O0"
    loss_scale: float = field(default=65536.0, metadata=bounds(above=0))
    loss_scale_window: int = field(default=2000, metadata=bounds(1))
    max_failed_batches: int = field(default=10, metadata=bounds(1))
    recompute: bool = False
    init_checkpoint: str | None = field(default=None, metadata=PATH)
    init_exits: int | None = field(default=None, metadata=bounds(1))
    checkpoint_every_epochs: int = field(default=1, metadata=bounds(1))
    eval_every_epochs: int = field(default=1, metadata=bounds(0))
    eval_resize_size: int | None = field(default=None, metadata=bounds(1, MOST_PIXELS_PER_SIDE))
    keep_best: int = field(default=3, metadata=bounds(0))
    dataset_sink_mode: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "train.")
        for key in ("exit_weights", "exit_lr_scales"):
            if (values := getattr(self, key)) is not None and not any(values):
                raise ConfigError(f"train.{key} is {values}; at least one of them must be above 0")
        if self.warmup_epochs > self.epochs:
            raise ConfigError(
                f"train.warmup_epochs {self.warmup_epochs:g} is more than train.epochs {self.epochs}; give both"
            )


@dataclass
class EvalSection:
    """How to evaluate, and what the thresholds are to achieve: a budget, or else a bound on lost accuracy.

    Args:
        batch_size: Images per batch.
        budget_gmacs: Average GMACs per image that may be spent; the most accurate thresholds within it are chosen.
        budget_images_per_second: Images/s to reach here, by measured times; the most accurate thresholds are chosen.
        max_accuracy_drop: Without a budget: points that may be lost, of what eval.risk counts, at the lowest cost.
        confidence: With which images of the same kind as the calibration images keep max_accuracy_drop or, with a
            budget, an upper bound of the average cost; needs images that the model was not trained on
            (docs/certified.md). none chooses on all calibration images, without a certificate.
        risk: What the certificate is about: accuracy_drop, the net loss against the last exit; regressions, wrong
            answers where the last exit is right; changes, answers that differ from the last exit's.
        on_uncertified: Where nothing can be certified: warn says so and chooses without, fail ends with an error.
        threshold_search: optimised searches all thresholds; published takes the 59 points of the published sweep.
        exit_rule: What is compared with the thresholds: largest probability, entropy, or margin of the two largest.
        temperature_scaling: Divide each exit's logits by a temperature fitted on the calibration images first.
        throughput_images: Images over which images/s are measured, at most all; 0 measures nothing. null: as many, up
            to 2,048, as a tenth of the time of the evaluation allows.
        keep_probabilities: Also keep the probabilities of all classes in predictions.npz (600 MB for ImageNet).
        store: Write thresholds, results and, if it lacks them, preprocessing and class names into the checkpoint.
    """

    batch_size: int = field(default=64, metadata=bounds(1, MOST_IMAGES_PER_BATCH))
    budget_gmacs: float | None = field(default=None, metadata=bounds(above=0))
    budget_images_per_second: float | None = field(default=None, metadata=bounds(above=0))
    max_accuracy_drop: float = field(default=0.5, metadata=bounds(0))
    confidence: float | Literal["none"] = field(default=0.95, metadata=bounds(above=0, below=1))
    risk: Literal["accuracy_drop", "regressions", "changes"] = "accuracy_drop"
    on_uncertified: Literal["warn", "fail"] = "warn"
    threshold_search: Literal["optimised", "published"] = "optimised"
    exit_rule: Literal["confidence", "entropy", "margin"] = "confidence"
    temperature_scaling: bool = False
    throughput_images: int | None = field(default=None, metadata=bounds(0))
    keep_probabilities: bool = False
    store: bool = False

    @property
    def has_budget(self) -> bool:
        """Of cost or speed."""
        return self.budget_gmacs is not None or self.budget_images_per_second is not None

    def __post_init__(self) -> None:
        check_fields(self, "eval.")
        if self.budget_gmacs is not None and self.budget_images_per_second is not None:
            raise ConfigError("eval.budget_gmacs and eval.budget_images_per_second are both set; give one budget")
        if self.risk != "accuracy_drop" and (self.confidence == "none" or self.has_budget):
            raise ConfigError(f"eval.risk {self.risk} needs eval.max_accuracy_drop with a confidence, and no budget")
        if self.budget_images_per_second is not None and self.throughput_images == 0:
            raise ConfigError("eval.budget_images_per_second needs measured times; leave eval.throughput_images 0 out")


@dataclass
class RunConfig:
    """A training run and its evaluation.

    Args:
        model: Which DVT to build.
        data: Which images, and how they become model inputs.
        augment: How training images are varied.
        train: How to train.
        eval: How to evaluate.
        device_target: Device to run on; auto takes the best one that is there.
        seed: Seed of weights, data order, augmentation and stochastic depth.
        output: Folder for checkpoints, the log, the resolved configuration and the report.
        resume: Go on with the run in the output folder from its last saved step.
        deterministic: Take only operators whose results do not vary from run to run (Ascend and GPU; slower).
        jit_level: How far graphs are compiled; auto is MindSpore's own choice for the device.
        profile: Record a few steps of the first epoch with MindSpore's profiler, into the folder "profile" of the run.
    """

    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    augment: AugmentSection = field(default_factory=AugmentSection)
    train: TrainSection = field(default_factory=TrainSection)
    eval: EvalSection = field(default_factory=EvalSection)
    device_target: DeviceTarget = "auto"
    seed: int = field(default=0, metadata=bounds(0, 2**63 - 1))
    output: str = field(default="runs/dvt", metadata=PATH)
    resume: bool = False
    deterministic: bool = False
    jit_level: Literal["auto", "O0", "O1"] = "auto"
    profile: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "")
