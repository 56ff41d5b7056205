"""The complete fast model: the reference with parts replaced."""

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from pgat_fast.model.execution import Execution
from pgat_fast.model.forecast import Diagnostics, Forecast
from pgat_fast.model.optimized.body_nodes import FastBodyFusion, FastBodyNodes
from pgat_fast.model.optimized.combiner_batched import FastBatchedCombiner
from pgat_fast.model.optimized.combiner_hierarchical import FastHierarchicalCombiner
from pgat_fast.model.optimized.decoder import FastDecoderBlock
from pgat_fast.model.optimized.encoder import FastSpatioTemporalEncoder
from pgat_fast.model.optimized.fast_module import FastModule
from pgat_fast.model.optimized.graph_processing import FastGraphAttention
from pgat_fast.model.optimized.hierarchical_mapping import FastHierarchicalMapping
from pgat_fast.model.optimized.mixture import FastMixtureDecoder
from pgat_fast.model.optimized.phase import FastPhaseAwareProcessor
from pgat_fast.model.reference.pgat import PGAT, CelestialGraph
from pgat_kernels.malloc import keep_freed_memory
from pgat_kernels.matmul_precision import fast_exact_float32

if TYPE_CHECKING:
    from pgat_fast.config.schema import ModelConfig


class FastCelestialGraph(CelestialGraph):
    """Sections 1 to 6 with parts replaced."""

    phase_part = FastPhaseAwareProcessor
    body_nodes_part = FastBodyNodes
    body_fusion_part = FastBodyFusion
    combiner_parts: ClassVar = {"batched": FastBatchedCombiner, "hierarchical": FastHierarchicalCombiner}


class FastPGAT(PGAT):
    """The forecaster: the same function of the same parameters as the reference, with less work and memory.

    Its chunks rely on the reuse of freed buffers, which `pgat_kernels.malloc` enables for the whole process.
    """

    celestial_part = FastCelestialGraph
    mapping_part = FastHierarchicalMapping
    encoder_part = FastSpatioTemporalEncoder
    graph_attention_part = FastGraphAttention
    decoder_part = FastDecoderBlock
    mixture_part = FastMixtureDecoder

    def __init__(self, config: "ModelConfig", execution: Execution | None = None) -> None:
        keep_freed_memory()
        super().__init__(config)
        self.set_execution(execution or Execution())

    def forward(
        self, x_enc: Tensor, x_mark_enc: Tensor, x_dec: Tensor, x_mark_dec: Tensor
    ) -> tuple[Forecast, Diagnostics]:
        """Compute `PGAT.forward`.

        The operators ask for torch's setting of exact float32 products, which belongs to the process. It is kept for
        the whole call: otherwise other threads would change, in the last digits, the products between operators.
        """
        inputs = x_enc, x_mark_enc, x_dec, x_mark_dec
        if torch.compiler.is_compiling():  # the compiled code calls operators, which ask for the setting
            return super().forward(*inputs)
        with fast_exact_float32():
            return super().forward(*inputs)

    def set_execution(self, execution: Execution) -> None:
        """Set the execution options of all parts."""
        self.execution = execution
        for module in self.modules():
            if isinstance(module, FastModule):
                module.execution = execution
