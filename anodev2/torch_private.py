"""All of PyTorch's private names that we use: what each is for, and what would take its place. Nothing else here touches one.

What the underscores of ``tensor._version``, ``module._parameters``, ``_buffers`` and of their hooks hide has been the same since
they came, and subclasses everywhere rely on it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from operator import getitem
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack as no_transforms  # else: as below
from torch.autograd import forward_ad
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm  # base class of all; else: a tuple of those that are public
from torch.nn.modules.module import _global_forward_hooks as hooks_of_all_modules  # else: no early end of a redone step
from torch.utils._python_dispatch import TorchDispatchMode  # the only way to see operations with their schemas
from torch.utils._python_dispatch import _disable_current_modes as no_dispatch_modes  # else: make tables when a module is made
from torch.utils._python_dispatch import is_in_torch_dispatch_mode as entered_modes  # by a compiler's caller too; else: as above
from torch.utils._pytree import tree_leaves  # of an operation's arguments; else: torch.utils.pytree, once that is the same

__all__ = ["BatchNorm", "TorchDispatchMode", "entered_modes", "no_dispatch_modes", "no_transforms", "tree_leaves"]


def in_transform() -> bool:
    """Whether a transform of torch.func is at work. Else: an autograd Function with ``setup_context`` and a rule for each."""
    return peek_interpreter_stack() is not None


def transformed() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation is at work. Else: the same."""
    return in_transform() or forward_ad._current_level >= 0


def has_tangent(tensor: Tensor) -> bool:
    """Whether forward mode has a derivative for it. Else: ``forward_ad.unpack_dual`` alone, which is an error outside of a level."""
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None


def in_dispatch_mode() -> bool:
    """Whether some mode sees operations, so that tensors made here may be of its kind. Else: keep no tensors across calls."""
    return bool(torch._C._len_torch_dispatch_stack())


def in_fake_mode() -> bool:
    """Whether tensors made here hold no numbers. Else: make one and look at its type."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None  # pyright: ignore[reportPrivateImportUsage]


def in_tracing_mode() -> bool:
    """Whether operations are noted rather than done: fake tensors, make_fx, functionalization. Else: as above."""
    kinds = torch._C._TorchDispatchModeKey
    return any(torch._C._get_dispatch_mode(kind) is not None for kind in (kinds.FAKE, kinds.PROXY, kinds.FUNCTIONAL))


def constant_for_compilers(call: Callable[..., str]) -> Callable[..., str]:
    """Called when something is compiled, not when that is run. Else: ``torch.compiler.assume_constant_result``, which imports compilers."""
    vars(call)["_dynamo_marked_constant"] = True
    return call


def known(value: Any) -> Any:
    """A value, (nested) tuples of them, in which a compiler at work here has numbers, not symbols: other numbers are compiled anew. Else:
    tables with symbols among their numbers are made in every call, which compilers (2.14) turn into numbers too."""
    from torch.fx.experimental.symbolic_shapes import guard_scalar  # has been imported by the compiler

    if isinstance(value, tuple):
        return tuple([known(part) for part in value])
    return guard_scalar(value) if isinstance(value, (int, float)) else value


def no_torch_functions() -> Any:
    """A context in which modes of torch functions see nothing. Else: ``torch.overrides`` has one for subclasses alone."""
    return torch._C.DisableTorchFunction()


def saving_hooks() -> Any:
    """The pair of hooks that tensors saved here would be given to; None without any. Else: save one and look."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False)  # pyright: ignore[reportAttributeAccessIssue]


def keeps_graph() -> bool:
    """Whether the backward pass at work keeps its graph. Else: hold what was redone until the next step is."""
    return torch._C._autograd._get_current_graph_task_keep_graph()  # pyright: ignore[reportAttributeAccessIssue]


def after_backward(call: Callable[[], None]) -> None:
    """Call at the end of the backward pass at work. Else: ``torch.autograd.graph.register_multi_grad_hook`` on what is known to come."""
    torch.autograd.Variable._execution_engine.queue_callback(call)  # pyright: ignore[reportAttributeAccessIssue]


def next_node() -> int:
    """The number of the next node of a graph in this thread. Else: make a node and ask it."""
    return torch.autograd._get_sequence_nr()  # pyright: ignore[reportPrivateImportUsage]


def set_versions(tensors: Sequence[Tensor], counts: Sequence[int]) -> None:
    """How often each was modified in place. Else: kernels that write without counting, as BatchNorm's does."""
    torch._C._autograd._unsafe_set_version_counter(tuple(tensors), tuple(counts))  # pyright: ignore[reportAttributeAccessIssue]


def copy_together(into: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy each into its own, all of one type and device, in one launch. Else: ``copy_``, in as many."""
    torch._foreach_copy_(list(into), list(values))  # pyright: ignore[reportPrivateImportUsage]


@cache
def compile_errors() -> tuple[type[Exception], ...]:
    """What torch.compile raises where it cannot compile; imported only here, as it takes seconds. Else: any Exception of a first call."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
    from torch._inductor.exc import InductorError

    return TorchDynamoException, FailOnRecompileLimitHit, InductorError


@contextmanager
def compilers_own_warnings_ignored() -> Iterator[None]:
    """For a first call: torch.compile looks at the .grad of what it is given, tells of transforms, which it calls as they are, and, where
    it follows ``inspect.signature``, of what that keeps. Else: no word about the second; the others as they are."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        warnings.filterwarnings("ignore", message="Torchinductor does not support code generation for complex operators")
        warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`-wrapped function at 'inspect")
        logger = logging.getLogger("torch._inductor.ir")
        logger.addFilter(_of_note)
        try:
            yield
        finally:
            logger.removeFilter(_of_note)


def _of_note(record: logging.LogRecord) -> bool:
    return "missing a c-shim implementation" not in record.getMessage()


def options_of_mode(mode: str) -> dict[str, Any]:
    """What a mode of torch.compile sets. Else: ``torch.compile`` takes a mode or options, not both."""
    import torch._inductor

    return dict(torch._inductor.list_mode_options(mode))


@cache
def keeps_what_is_read(only: bool = False) -> dict[str, Any]:
    """Options of torch.compile by which a graph keeps for its backward pass what it read of a tensor before it wrote to it: of itself
    inductor (2.14) keeps the tensor, with what is in it at the end. Else: refuse an f that reads a buffer which it changes.

    ``only``: that, its inputs, what it draws, what operations of others than torch return, and nothing else; all other values are found
    again at the beginning of the backward pass. Else: ``torch.utils.checkpoint`` inside of what is compiled, which takes no f that writes
    to attributes."""
    from torch._functorch.partitioners import is_rng_op
    from torch._inductor.custom_graph_pass import CustomGraphPass
    from torch.utils.checkpoint import CheckpointPolicy

    def draws(node: torch.fx.Node) -> bool:
        """It may: a user's operation need not say so."""
        return is_rng_op(node) or getattr(node.target, "namespace", "aten") not in ("aten", "prims")

    class Keep(CustomGraphPass):
        def __call__(self, graph: torch.fx.Graph) -> None:
            for write in graph.find_nodes(op="call_function", target=torch.ops.aten.copy_.default):
                written = write.args[0]
                reads = [user for user in written.users if user is not write]
                if written.op == "placeholder" and reads:
                    with graph.inserting_after(written):
                        read = graph.call_function(torch.ops.aten.clone.default, (written,))
                    read.meta = {**written.meta, "recompute": CheckpointPolicy.MUST_SAVE, "ac_graph_id": 0}
                    for user in reads:
                        user.replace_input_with(written, read)
            if only:
                self.forget(graph)

        def forget(self, graph: torch.fx.Graph) -> None:
            backward = {node for node in graph.find_nodes(op="placeholder") if node.name.startswith("tangents")}
            for node in graph.nodes:
                if not backward.isdisjoint(node.all_input_nodes):
                    backward.add(node)
                elif node.op == "call_function" and "recompute" not in node.meta and node.target is not torch.ops.aten.copy_.default:
                    kept = draws(node) or (node.target is getitem and draws(node.args[0]))
                    node.meta["recompute"] = CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.MUST_RECOMPUTE
                    node.meta["ac_graph_id"] = 0

        def uuid(self) -> str:
            return f"anodev2.keeps_what_is_read.3.{only}"

    return {"joint_custom_post_pass": Keep()}


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether something is called after the module's forward."""
    return bool(module._forward_hooks or hooks_of_all_modules)
