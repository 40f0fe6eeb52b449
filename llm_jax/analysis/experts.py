"""Which experts serve which kinds of text, as a table for a terminal."""

from rich.table import Table

from llm_jax.evals.specialisation import CLASSES, Specialisation


def table(found: Specialisation) -> Table:
    """Of each layer how much an expert tells of the class of its tokens, and of each class the expert that serves most
    of it, with the share of the class's visits that it has."""
    made = Table("layer", "bits", *CLASSES, title="the expert that serves most of each class of tokens, and how much")
    for path in found.counts:
        for index, (share_CE, bits) in enumerate(found.layers(path)):
            most = [f"{share_E.argmax()} ({share_E.max():.0%})" if share_E.any() else "-" for share_E in share_CE]
            made.add_row(f"{path} {index}", f"{bits:.3f}", *most)
    return made
