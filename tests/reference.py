"""What tests against a reference share."""

import torch

import qkv


def shaken(model, by=0.1, anew=False):
    """The model with every trained weight moved at random (anew: drawn), and running means too, so that nothing stands at 0 or 1; in evaluation mode."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if anew or p.requires_grad:
                p.copy_(by * torch.randn(p.shape, generator=g, dtype=p.dtype) + (0 if anew else p))
        for name, b in model.named_buffers():
            if "running" in name:
                b.add_(0.1 * torch.rand(b.shape, generator=g))
    return model.eval()


def there_and_back(theirs, tmp_path):
    """Our model of a reference's files, having checked that what it saves holds the same tensors."""
    theirs.save_pretrained(tmp_path / "a")
    ours = qkv.load(tmp_path / "a")
    qkv.save(ours, tmp_path / "b")
    again = type(theirs).from_pretrained(tmp_path / "b")
    for (name, a), (_, b) in zip(theirs.state_dict().items(), again.state_dict().items(), strict=True):
        assert a.equal(b), name
    return ours
