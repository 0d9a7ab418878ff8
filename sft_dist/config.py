"""Everything a run may be asked to do: frozen models, with a default and a docstring for each key."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from sft_dist.units import Count, Goal, Length, Number, PlainName, PositiveLength, Rate, Seed, Share, Text, Three, TrainPart, Workers


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(Section):
    name: Literal["folder", "torchvision", "digits", "voc", "coco", "masks", "csv"]
    """Kind of data set: `folder` (one folder a class under `train/`, and `val/`, `test/` where they exist), `torchvision` (a classification set of torchvision), `digits` (embedded, no files), `masks` (`train/images/` and `train/masks/`, and `val/`, `test/` alike where they exist: PNGs whose pixels are class ids), `voc` (boxes as Pascal VOC has them: `JPEGImages/`, `Annotations/`, and lists in `ImageSets/Main/` where they are), `coco` (boxes as COCO has them: `annotations/instances_train*.json` and a folder of images of the same name)."""
    root: Text | None = None
    """Folder of the data, relative to where the run is started. Needed by all but `digits`."""
    dataset: Text | None = None
    """Class name in torchvision.datasets, for `torchvision`: CIFAR10, OxfordIIITPet, Flowers102..."""
    download: StrictBool = False
    """Let torchvision download the set into `data.root` if it is not there."""
    classes: tuple[Text, ...] | None = None
    """Use only these classes, in this order; null uses all, sorted by name. With boxes, those of other classes count as background. For `masks`: the names of the ids 0, 1, 2...; null takes the lines of `classes.txt` in `data.root`."""
    void: tuple[Annotated[int, Field(ge=0, le=2**16 - 1)], ...] = (255,)
    """For `masks`: ids of pixels that have no class; they count neither in the loss nor in the scores."""
    val_fraction: Share = 0.2
    """Share of the training images held out for validation, drawn by `data.split_seed`, where the set has no validation split of its own."""
    split_seed: Seed = 0
    """Seed of the validation split and of `data.per_class`; apart from `train.seed`, so that runs with other seeds see the same split."""
    per_class: Count | None = None
    """Train on at most this many images of each class; null uses all. Validation keeps its size."""
    size: Annotated[int, Field(ge=8)] = 224
    """Side of the square image that the model sees, in pixels; with `task: segment` in training only. With `task: detect` the longer side of the image, which is padded to that square; a multiple of 32."""
    resize: Annotated[int, Field(ge=8)] | None = None
    """For evaluation: shorter side, in pixels, before the centre crop; null is size * 256 / 224 with `resized_crop`, else size. With `task: segment` nothing is cropped away, and null is size."""
    augment: Literal["resized_crop", "padded_crop", "none"] = "resized_crop"
    """Training crop: `resized_crop` (random area and ratio), `padded_crop` (resize, pad by an eighth, random crop), or `none` (resize and centre crop, no flip). With `task: detect`: `resized_crop` (torchvision's RandomIoUCrop, around objects) or `none`, both with `flip`."""
    crop_scale: tuple[Number, Number] = (0.08, 1.0)
    """Smallest and largest share of the image's area that `resized_crop` takes."""
    flip: Annotated[Number, Field(ge=0, le=1)] = 0.5
    """Probability of a horizontal flip in training."""
    mean: Three = (0.485, 0.456, 0.406)
    """Per-channel mean that is subtracted, for values in 0..1; the default is ImageNet's."""
    std: Three = (0.229, 0.224, 0.225)
    """Per-channel deviation that is divided by; the default is ImageNet's."""
    workers: Workers = "auto"
    """Loading processes per rank; `auto` takes the processors this rank may use, less one, at most 8; 0 loads in the training process."""
    bad: Literal["stop", "skip"] = "stop"
    """What an unreadable image does: `stop` ends the run with its path."""


class Model(Section):
    name: Text
    """A network of torchvision by name: of classifiers resnet18, resnet50, mobilenet_v2, vit_b_16, convnext_tiny, swin_t...; of `task: segment` deeplabv3_resnet50, fcn_resnet50, lraspp_mobilenet_v3_large...; of `task: detect` fasterrcnn_resnet50_fpn, fasterrcnn_resnet50_fpn_v2, fasterrcnn_mobilenet_v3_large_fpn..."""
    weights: Text = "DEFAULT"
    """Where the weights come from: `DEFAULT` or an enum name of torchvision (downloaded once), a `.safetensors` or `.pth` file, `run:<folder>` (the best checkpoint of a run), or `none`. With `task: segment` and `task: detect` a file or run of a classifier fills the backbone."""
    head: Literal["auto", "new", "keep"] = "auto"
    """Whether the last layer is drawn anew: `auto` keeps it only if it comes from a run with the same classes."""
    train: TrainPart = "head"
    """Which part learns: `head`, `all`, or `last:N` (the head and the last N stages). The rest is frozen: no gradient, and in evaluation mode."""
    norm: Literal["frozen", "train", "sync"] = "frozen"
    """Batch-norm statistics: `frozen` keeps the pretrained ones, `train` learns them on each rank, `sync` over all ranks (GPU only)."""
    dropout: Literal["keep", "none"] = "keep"
    """`none` turns dropout and stochastic depth off; with `keep` their draws depend on the layout of ranks and micro-batches."""
    activation_checkpointing: StrictBool = False
    """Keep only what enters each block and compute its inside again in the backward pass: less memory, the same numbers, up to a third more time."""


class Batch(Section):
    total: Count
    """Samples per optimizer step over all ranks: the global batch. Accumulation is derived from it."""
    micro: Count
    """Samples per forward pass on one rank: what fits in memory."""


class Optim(Section):
    name: Literal["sgd", "adamw"] = "sgd"
    """Optimizer: `sgd` or `adamw` (decoupled weight decay)."""
    lr: Rate = 0.001
    """Learning rate at its highest, for the global batch as it is; nothing is scaled behind your back."""
    momentum: Share = 0.9
    """SGD's momentum."""
    nesterov: StrictBool = False
    """SGD's look-ahead momentum."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """AdamW's decay rates of the first and second moment."""
    eps: Annotated[Number, Field(gt=0)] = 1e-8
    """AdamW's term against division by zero."""
    weight_decay: Rate = 0.0
    """Weight decay of matrices and filters; norms and biases are never decayed."""
    head_lr_factor: Rate = 1.0
    """The head learns at `lr` times this."""


class Schedule(Section):
    name: Literal["constant", "step", "cosine"] = "constant"
    """Course of the learning rate after the warm-up."""
    warmup: Length = "0 steps"
    """Length of the linear rise from nearly zero at the start."""
    step_every: PositiveLength = "30 epochs"
    """For `step`: how often the rate is multiplied by `gamma`."""
    gamma: Annotated[Number, Field(gt=0, le=1)] = 0.1
    """For `step`: the factor."""
    final: Share = 0.0
    """For `cosine`: the share of the rate that is left at the end."""


class Train(Section):
    duration: PositiveLength
    """How long to train. A finished run that is started again with more goes on from its end."""
    seed: Seed = 0
    """Seed of the new head, of the order of samples, of augmentation and dropout."""
    clip: Annotated[Number, Field(gt=0)] | None = None
    """Largest global norm of the gradient; null does not clip."""
    deterministic: StrictBool = False
    """Bit-equal repeats of one layout, at some cost in speed."""
    allow_emulated: StrictBool = False
    """Try out on a CPU what it only imitates: `precision: bf16` on a processor without it and `fp16` on any, at a tenth of the speed or less, and `shard.offload`, which saves nothing there."""


class Eval(Section):
    every: PositiveLength = "1 epoch"
    """How often the validation set is scored; the end of training always is."""
    where: Literal["all", "rank0"] = "all"
    """Who evaluates: all ranks share the work, or rank 0 does it while the others wait. The scores are the same."""
    micro: Count | None = None
    """Samples per forward pass in evaluation; null is `batch.micro`. With `task: segment` it is always one: images differ in size."""
    test: StrictBool = True
    """Score the best checkpoint on the test split at the end, if there is one."""


class Save(Section):
    every: PositiveLength = "1 epoch"
    """How often a checkpoint is written; the end of training, a new best and a signal always write one."""
    keep: Count = 3
    """How many of the newest checkpoints stay; the best one always stays as well."""
    background: StrictBool = True
    """Write behind the training: a step waits only for the copy to host memory. The next save waits for the last."""
    on_error: Literal["stop", "continue"] = "stop"
    """What a checkpoint that cannot be written does: `stop` ends the run, `continue` warns and trains on; the last one always stops."""
    limit_s: Count = 1200
    """Seconds that a checkpoint may take to reach the disk before it counts as failed."""


class Shard(Section):
    strategy: Literal["ddp", "zero1", "zero2", "zero3", "fsdp"] = "ddp"
    """How model and optimizer are spread over the ranks: `ddp` keeps a whole copy on each; `zero1`, `zero2`, `zero3` (DeepSpeed) share out optimizer state, gradients, parameters; `fsdp` (torch's FSDP2) shares out all three."""
    offload: Literal["none", "optimizer", "params"] = "none"
    """What waits in host memory between its uses: the optimizer's state (`zero1` to `zero3`), or parameters and optimizer's state (`fsdp`). For GPUs; on a CPU only to try it out (`train.allow_emulated`)."""
    reshard_after_forward: StrictBool = True
    """`fsdp`: free a block's gathered parameters after the forward pass, and gather them again for the backward pass."""
    hybrid: Count | None = None
    """`fsdp`: ranks per group; each group holds a copy and shares it out among its ranks (HSDP). Null is one group of all ranks."""


class Ema(Section):
    decay: Share | None = None
    """Keep a moving average of the weights with this decay per step, and score, test and export it instead of the weights themselves; null keeps none."""
    warmup: StrictBool = True
    """Begin with a shorter memory: the decay of update n is min(decay, (1 + n) / (10 + n))."""


class Stop(Section):
    patience: Count | None = None
    """Stop after this many evaluations in a row without a new best headline score; null never does."""
    when: Goal | None = None
    """Stop once a score is reached: "val/top1 >= 0.95"."""


class Track(Section):
    wandb: Literal["online", "offline", "disabled"] = "disabled"
    """Weights & Biases: `online` sends every row as it comes, and turns into `offline` where there is no key or no answer; `offline` writes what `wandb sync` and `sft-dist sync` send later."""
    project: Text | None = None
    """Weights & Biases project; null leaves it to WANDB_PROJECT, else W&B calls it uncategorized."""
    entity: Text | None = None
    """User or team that the project belongs to; null leaves it to WANDB_ENTITY, else to the key's own default."""
    group: Text | None = None
    """Group that W&B shows this run in, like the name of an experiment with several seeds."""
    job_type: Text | None = None
    """What kind of run this is within its group."""
    tags: tuple[Text, ...] = ()
    """Labels to filter by."""
    notes: Text | None = None
    """A sentence about this run."""
    limit_s: Annotated[int, Field(ge=1, le=240, strict=True)] = 30
    """Seconds that the end of a run waits, at most, for W&B to take the rest."""
    predictions: Annotated[int, Field(ge=0, le=10_000)] = 100
    """Rows of the table of predictions that W&B gets at the end: of `classify` wrong answers first, of them the surest, then right ones, the least sure first; of `segment` and `detect` the images with the lowest IoU or F1. 0 sends none, and no sample's name."""
    artifact: Literal["none", "export"] = "none"
    """`export` also sends W&B, at the end, the best checkpoint as an artifact of type model: one file of weights and what goes with it, as `sft-dist ckpt export` writes them."""
    csv: StrictBool = False
    """Also write metrics.csv, for spreadsheets, at the end of each attempt: the rows of metrics.jsonl."""
    tensorboard: StrictBool = False
    """Also write event files for TensorBoard, with the rows of metrics.jsonl; needs `pip install 'sft-dist[tensorboard]'`."""
    every: PositiveLength = "1 step"
    """How often a training row is written to metrics.jsonl."""
    communication: StrictBool = False
    """Measure what the ranks' messages take: torch's profiler looks at three early steps of each attempt on several ranks, which makes them about twice as long."""


class Report(Section):
    write: Literal["none", "page", "look"] = "page"
    """What the end of a finished run writes: `page` is report.html, from the run's own files; `look` first loads data and model again, on the CPU, for augmented samples and weight change; of `classify` also for class balance, Grad-CAM and the embedding, of `segment` for the masks; `sft-dist report` does both later."""
    limit_s: Count = 120
    """Seconds that the end of a run waits, at most, for its report."""


class Watch(Section):
    startup_s: Count = 1800
    """Seconds that a rank may take from its start to its first step before its launcher ends the run (exit code 75, with every rank's stack)."""
    step_s: Count | Literal["auto"] = "auto"
    """Seconds that a rank may stay in one phase of a step; `auto`: 30 times the longest that was normal so far, at least 300."""
    evaluation_s: Count | Literal["auto"] = "auto"
    """Seconds for one micro-batch of an evaluation; `auto` as for a step."""
    save_s: Count | Literal["auto"] = "auto"
    """Seconds for the part of a save that the ranks wait for; `auto`: `save.limit_s` and 300 more."""


class Run(Section):
    dir: Text = "runs"
    """Folder that holds the runs."""
    name: PlainName
    """Name of this run, and of its folder; by default the config file's name."""
    expect_world: Count | None = None
    """Refuse to run on any other number of processes. The environment variable SFT_EXPECT_WORLD does the same."""
    shared: StrictBool = False
    """Let others of this machine look into the run's folder, as far as the umask allows; by default only its owner can."""


class Config(Section):
    """One run. Keys that are left out take the defaults given here."""

    task: Literal["classify", "detect", "segment", "text"]
    """Kind of work."""
    data: Data
    model: Model
    batch: Batch
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    train: Train
    eval: Eval = Eval()
    save: Save = Save()
    stop: Stop = Stop()
    ema: Ema = Ema()
    shard: Shard = Shard()
    precision: Literal["fp32", "tf32", "bf16", "fp16", "fp64"] = "fp32"
    """Arithmetic: `fp32` (TF32 off), `tf32`, `bf16` (autocast, fp32 weights), `fp16` (likewise, with a dynamic loss scale), `fp64` (everything in double: the ruler for comparing layouts)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; `auto` takes CUDA if there is any."""
    track: Track = Track()
    report: Report = Report()
    watch: Watch = Watch()
    run: Run
