"""Typed configuration of recipes and clusters: every key, its default and its meaning."""

from dataclasses import dataclass
from typing import Any

from nemo_tvkd.keys import key


@dataclass
class ContainerConfig:
    """What the jobs' processes run in."""

    runtime: str = key("none", choices=("none", "pyxis", "apptainer", "docker"))
    """none (the node's own Python) | pyxis (srun --container-image) | apptainer | docker."""
    image: str = "nvcr.io/nvidia/nemo:25.11"
    """pyxis: a registry's name or a .sqsh file; apptainer: a .sif file or docker://...; docker: an image."""
    mounts: list[str] = key([])
    """HOST:CONTAINER[:ro] each, besides the run folder, which is always there under its own path."""
    options: list[str] = key([])
    """Further words for srun (pyxis), `apptainer exec` or `docker run`."""
    install: str = ""
    """Checkout or wheel of this project, installed into the run folder with pip --no-deps; empty: the image has it."""


@dataclass
class ClusterConfig:
    """Where jobs run. STAGE.cluster.KEY=VALUE sets a key for one stage."""

    name: str = ""
    """What tables and reports call the cluster."""
    account: str = ""
    """Whose hours they are (sbatch --account); empty: the user's default."""
    partition: str = ""
    """Where jobs queue (sbatch --partition); empty: the site's default."""
    qos: str = ""
    """Quality of service (sbatch --qos); empty: the site's default."""
    node_type: str = "8x80gb"
    """Which of the recipe's layouts fits these nodes: 8x80gb | 4x64gb."""
    nodes: int | None = key(None, above=0)
    """Nodes of every stage that computes; null: what the recipe's layout says."""
    gpus_per_node: int = key(8, at_least=0)
    """0: nodes without GPUs, whose ranks compute on the CPU."""
    ranks_per_node: int | None = key(None, above=0)
    """Processes on a node; null: one for each GPU."""
    cpus_per_rank: int | None = key(None, above=0)
    """CPU cores of a process (sbatch --cpus-per-task); null: the site's default."""
    memory: str = "0"
    """Main memory of a node (sbatch --mem), for example 200G; 0: all of it; empty: the site's default."""
    gpu_memory_gib: float = key(80.0, above=0)
    """Memory of one GPU, which `doctor` compares its estimate with."""
    gpu_tflops: float = key(989.0, above=0)
    """Dense bf16 peak of one GPU, for the hours that `doctor` estimates (H100 SXM: 989, A100: 312)."""
    time: str = "24:00:00"
    """Longest time limit of a job, as Slurm writes it; a stage that needs longer goes on in the next one."""
    signal_seconds: int = key(300, above=0)
    """How long before the time limit a job is told to save and leave."""
    max_restarts: int = key(20, at_least=0)
    """How often a stage may go on in another job after such a stop."""
    max_failures: int = key(2, at_least=0)
    """How often a stage is started again after a crash; a user's mistake (exit code 2) never is."""
    exclusive: bool = True
    """Whole nodes."""
    gpu_directive: str = key("gpus-per-node", choices=("gpus-per-node", "gres", "none"))
    """How this site wants GPUs asked for: gpus-per-node | gres | none."""
    modules: list[str] = key([])
    """Loaded with `module load` on the node."""
    environment: dict[str, str] = key({})
    """Variables of the jobs' processes, also inside a container."""
    setup: list[str] = key([])
    """Shell lines of the batch script before anything runs (activate an environment, say)."""
    sbatch_lines: list[str] = key([])
    """Further options of sbatch, each as behind #SBATCH."""
    srun_options: list[str] = key([])
    """Further options of every srun, for example --mpi=pmix."""
    offline: bool = True
    """Tell Hugging Face's libraries that there is no network: models and data are on disk already."""
    preflight: bool = False
    """Before a stage of several ranks, try its nodes: `nemo-tvkd doctor` on every rank, with an all-reduce."""
    python: str = "python"
    """The interpreter with nemo_tvkd, on the node or in the container."""
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
    """As data.chat_template: base models have none."""
    end_token: str = ""
    """As data.end_token."""
    pad_token: str = ""
    """As data.pad_token."""


@dataclass
class DatasetConfig:
    """Pairs or conversations: paths or hub ids, as data.train and data.validation."""

    train: Any = ""
    """As data.train."""
    validation: Any = ""
    """As data.validation."""


@dataclass
class LayoutConfig:
    """How a stage is spread over nodes."""

    nodes: int = 1
    """Nodes of the stage's job."""
    tensor_model_parallel_size: int = 1
    """As parallel.tensor_model_parallel_size."""
    pipeline_model_parallel_size: int = 1
    """As parallel.pipeline_model_parallel_size."""
    sequence_parallel: bool = False
    """As parallel.sequence_parallel."""
    micro_batch_size: int = 1
    """Pairs (for sft: examples) per forward pass and model replica."""
    recompute: bool = False
    """As trainer.recompute."""


@dataclass
class StageConfig:
    """One job of a chain."""

    command: str = "train"
    """train | score | export-hf | evaluate | benchmark."""
    after: list[str] = key([])
    """Stages whose output it reads."""
    models: dict[str, str] = key({})
    """Configuration key of a model -> which of recipe.models it is, or was before earlier stages trained it."""
    settings: dict[str, Any] = key({})
    """The command's keys, dotted, with their values; a value @NAME is the output of the stage NAME."""
    time: str = ""
    """Time limit where it is less than the cluster's."""


@dataclass
class RecipeConfig:
    """A chain of stages from pretrained models to an evaluated student."""

    name: str = ""
    """What jobs, the run folder and reports are called after."""
    models: dict[str, ModelConfig] = key({})
    """Pretrained models by their part (teacher, oracle, student)."""
    dataset: str = ""
    """Which of recipe.datasets the preference pairs are."""
    datasets: dict[str, DatasetConfig] = key({})
    """Preference pairs by name; `sft`: conversations."""
    stages: dict[str, StageConfig] = key({})
    """Jobs by name."""
    layouts: dict[str, dict[str, LayoutConfig]] = key({})
    """Node type -> stage -> layout."""


@dataclass
class SubmitConfig:
    """`nemo-tvkd submit` and `nemo-tvkd doctor`."""

    recipe: RecipeConfig = key(RecipeConfig)
    cluster: ClusterConfig = key(ClusterConfig)
    recipe_scale: str = key("full", choices=("full", "tiny"))
    """full | tiny (a rehearsal: random models of the same families in tiny sizes, a few steps of every stage)."""
    run_dir: str = "runs/${recipe.name}"
    """Folder of the chain: scripts, logs and the stages' outputs; on a file system that all nodes see."""
