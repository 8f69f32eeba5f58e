"""Typed configuration of recipes and clusters: every key, its default and its meaning."""

from dataclasses import dataclass
from typing import Any

from nemo_tvkd.keys import key


@dataclass
class ContainerConfig:
    """What the jobs' processes run in."""

    runtime: str = key("none", choices=("none", "pyxis", "apptainer", "docker"))
    """Container that the jobs' processes run in: none (the node's own Python) | pyxis (srun --container-image) |
    apptainer | docker."""
    image: str = "nvcr.io/nvidia/nemo:25.11"
    """Image of the container. pyxis: a registry's name or a .sqsh file; apptainer: a .sif file or docker://...; docker:
    an image."""
    mounts: list[str] = key([])
    """Folders seen in the container, HOST:CONTAINER[:ro] each. The run folder is always there, under its own path."""
    options: list[str] = key([])
    """Further words for srun (pyxis), `apptainer exec` or `docker run`."""
    install: str = ""
    """Checkout or wheel of this project, installed into the run folder with pip --no-deps; empty: the image has it."""


@dataclass
class ClusterConfig:
    """Where jobs run. STAGE.cluster.KEY=VALUE sets a key for one stage."""

    name: str = ""
    """Name of the cluster in tables and reports."""
    account: str = ""
    """Account that is charged (sbatch --account); empty: the user's default."""
    partition: str = ""
    """Partition of the jobs (sbatch --partition); empty: the site's default."""
    qos: str = ""
    """Quality of service (sbatch --qos); empty: the site's default."""
    node_type: str = "8x80gb"
    """Layout of the recipe that fits these nodes: 8x80gb | 4x64gb."""
    nodes: int | None = key(None, above=0)
    """Nodes of every stage that computes; null: as the recipe's layout says."""
    gpus_per_node: int = key(8, at_least=0)
    """GPUs of a node; 0: ranks compute on the CPU."""
    ranks_per_node: int | None = key(None, above=0)
    """Processes on a node; null: one for each GPU."""
    cpus_per_rank: int | None = key(None, above=0)
    """CPU cores of a process (sbatch --cpus-per-task); null: the site's default."""
    memory: str = "0"
    """Main memory of a node (sbatch --mem), for example 200G; 0: all of it; empty: the site's default."""
    gpu_memory_gib: float = key(80.0, above=0)
    """Memory of one GPU in GiB, which `doctor` compares with its estimate."""
    gpu_tflops: float = key(989.0, above=0)
    """Peak of one GPU in dense bf16 TFLOP/s, for the hours that `doctor` estimates (H100 SXM: 989, A100: 312)."""
    time: str = "24:00:00"
    """Longest time limit of a job, as Slurm writes it; a stage that needs longer continues in another job."""
    signal_seconds: int = key(300, above=0)
    """Seconds before the time limit at which a job gets the signal to save and stop."""
    max_restarts: int = key(20, at_least=0)
    """Number of times a stage may continue in another job after such a stop."""
    max_failures: int = key(2, at_least=0)
    """Number of times a stage is started again after a crash; a user's mistake (exit code 2) never restarts it."""
    exclusive: bool = True
    """Request whole nodes (sbatch --exclusive)."""
    gpu_directive: str = key("gpus-per-node", choices=("gpus-per-node", "gres", "none"))
    """Option of sbatch by which this site requests GPUs: gpus-per-node | gres | none."""
    modules: list[str] = key([])
    """Environment modules to load on the node (module load)."""
    environment: dict[str, str] = key({})
    """Environment variables of the jobs' processes, also inside a container."""
    setup: list[str] = key([])
    """Shell lines of the batch script before anything runs, for example to activate an environment."""
    sbatch_lines: list[str] = key([])
    """Further options of sbatch, each as behind #SBATCH."""
    srun_options: list[str] = key([])
    """Further options of every srun, for example --mpi=pmix."""
    offline: bool = True
    """Whether Hugging Face's libraries run without a network; models and data must be on disk already."""
    preflight: bool = False
    """Whether a stage of several ranks first checks its nodes: `nemo-tvkd doctor` on every rank, with an all-reduce."""
    python: str = "python"
    """Python interpreter with nemo_tvkd, on the node or in the container."""
    container: ContainerConfig = key(ContainerConfig)


@dataclass
class ModelConfig:
    """One of the models that a recipe starts from."""

    path: str = ""
    """Hugging Face directory or hub id."""
    tokenizer: str = ""
    """Tokenizer directory or .model file; the model's own when empty."""
    architecture: str = ""
    """Name of a file in conf/model, for estimates where the model is not on disk, and for recipe_scale=tiny."""
    chat_template: str = "auto"
    """Chat template, by the values of data.chat_template; base models have none of their own."""
    end_token: str = ""
    """Token that ends a response; the tokenizer's own when empty."""
    pad_token: str = ""
    """Padding token that checkpoints name; the tokenizer's own when empty."""


@dataclass
class DatasetConfig:
    """Pairs or conversations: paths or hub ids, as data.train and data.validation."""

    train: Any = ""
    """Training data: paths or hub ids, given as in data.train."""
    validation: Any = ""
    """Validation data: paths or hub ids, given as in data.train."""


@dataclass
class LayoutConfig:
    """How a stage is spread over nodes."""

    nodes: int = 1
    """Nodes of the stage's job."""
    tensor_model_parallel_size: int = 1
    """Ranks that each layer is split over (TP)."""
    pipeline_model_parallel_size: int = 1
    """Ranks that the layers are distributed over (PP)."""
    sequence_parallel: bool = False
    """Whether activations between tensor-parallel layers are split over tokens."""
    micro_batch_size: int = 1
    """Pairs per forward pass and model replica (examples for algorithm=sft)."""
    recompute: bool = False
    """Whether activations are computed again in the backward pass."""


@dataclass
class StageConfig:
    """One job of a chain."""

    command: str = "train"
    """Command of the stage: train | score | export-hf | evaluate | benchmark."""
    after: list[str] = key([])
    """Stages whose output it reads."""
    models: dict[str, str] = key({})
    """Configuration key of a model -> the model of recipe.models that it is, or that earlier stages trained it from."""
    settings: dict[str, Any] = key({})
    """Dotted keys of the command with their values; a value @NAME is the output of the stage NAME."""
    time: str = ""
    """Time limit of the stage where it is less than the cluster's."""


@dataclass
class RecipeConfig:
    """A chain of stages from pretrained models to an evaluated student."""

    name: str = ""
    """Name of the recipe, used for jobs, the run folder and reports."""
    models: dict[str, ModelConfig] = key({})
    """Pretrained models by their part (teacher, oracle, student)."""
    dataset: str = ""
    """Name of the preference pairs in recipe.datasets."""
    datasets: dict[str, DatasetConfig] = key({})
    """Preference pairs by name; `sft` names conversations."""
    stages: dict[str, StageConfig] = key({})
    """Jobs of the chain by name."""
    layouts: dict[str, dict[str, LayoutConfig]] = key({})
    """Node type -> stage -> layout."""


@dataclass
class SubmitConfig:
    """`nemo-tvkd submit` and `nemo-tvkd doctor`."""

    recipe: RecipeConfig = key(RecipeConfig)
    cluster: ClusterConfig = key(ClusterConfig)
    recipe_scale: str = key("full", choices=("full", "tiny"))
    """Size of the run: full | tiny (a rehearsal: random models of the same families in tiny sizes, a few steps of every
    stage)."""
    run_dir: str = "runs/${recipe.name}"
    """Folder of the chain: scripts, logs and the stages' outputs, on a file system that all nodes see."""
