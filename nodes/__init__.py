"""One file a node. `NODES` is what ComfyUI gets.

Nodes import the engine when they run: peft and diffusers take seconds, and ComfyUI's start must not wait.
"""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from ..trainer.host.paths import offer_embeddings
from . import cache_routes, caption_routes, folder_routes, routes, run_routes
from .apply_lora import ApplyLoRA
from .caption_images import CaptionImages
from .check_trigger import CheckTrigger
from .compare_baseline import CompareBaseline
from .compare_reports import CompareReports
from .dataset_report import DatasetReport
from .edit_captions import EditCaptions
from .evaluate_lora import EvaluateLoRA
from .image_framing import ImageFraming
from .join_datasets import JoinDatasets
from .load_dataset import LoadDataset
from .load_run import LoadRun
from .lora_adapter import LoRAAdapter
from .plan_training import PlanTraining
from .prior_preservation import PriorPreservation
from .textual_inversion import TextualInversion
from .train_lora import TrainLoRA
from .train_memory import TrainMemory
from .train_objective import TrainObjective
from .train_optimizer import TrainOptimizer
from .train_preview import TrainPreview
from .training_recipe import TrainingRecipe
from .video_clips import VideoClips

NODES: list[type[io.ComfyNode]] = [
    LoadDataset,
    CaptionImages,
    TrainLoRA,
    ApplyLoRA,
    CompareBaseline,
    LoRAAdapter,
    TrainObjective,
    TrainOptimizer,
    TrainMemory,
    TrainPreview,
    PriorPreservation,
    LoadRun,
    PlanTraining,
    EditCaptions,
    CheckTrigger,
    ImageFraming,
    JoinDatasets,
    DatasetReport,
    VideoClips,
    EvaluateLoRA,
    CompareReports,
    TrainingRecipe,
    TextualInversion,
]


class InGraphLoraExtension(ComfyExtension):
    async def on_load(self) -> None:
        offer_embeddings()
        routes.register()
        run_routes.register()
        folder_routes.register()
        caption_routes.register()
        cache_routes.register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
