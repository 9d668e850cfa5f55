"""Is somebody looking? A fast path may leave out the call of a module only where nothing would notice."""

import torch
from torch import nn
from torch.nn.modules import module as hooks_of_all


def watched(module: nn.Module) -> bool:
    """Would leaving out a call of this module be noticed?

    By a hook of its own (forward or backward, before or after), a hook on all modules, or a `forward` that was put in place of its
    class's.
    """
    own = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    everywhere = (
        hooks_of_all._global_forward_hooks
        or hooks_of_all._global_forward_pre_hooks
        or hooks_of_all._global_backward_hooks
        or hooks_of_all._global_backward_pre_hooks
    )
    return bool(own or everywhere) or "forward" in vars(module)


def plain(module: nn.Module, kind: type[nn.Module] = nn.Linear) -> bool:
    """Is the module of exactly this kind, and unwatched, so that its formula may be worked out without calling it?"""
    return type(module) is kind and not watched(module)


def made_of(module: nn.Module) -> dict[str, type]:
    """The classes of a module and of all its parts, by name: where they are not those that it was built of, somebody replaced one."""
    return {name: type(part) for name, part in module.named_modules()}


def transformed() -> bool:
    """Does a transform of torch.func trace? Its tensors have no numbers to look at, and it takes no gradients worked out by hand."""
    return torch._C._functorch.peek_interpreter_stack() is not None
