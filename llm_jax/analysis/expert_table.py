"""A table for the terminal of which experts process which kinds of tokens."""

from rich.table import Table

from llm_jax.evals.specialisation import CLASSES, Specialisation


def table(found: Specialisation) -> Table:
    """For each layer, the mutual information of expert and token class, and for each class the expert with the most
    visits, with its fraction of the class's visits."""
    made = Table("layer", "bits", *CLASSES, title="the expert that serves most of each class of tokens, and how much")
    for path in found.counts:
        for index, (share_CE, bits) in enumerate(found.layers(path)):
            most = [f"{share_E.argmax()} ({share_E.max():.0%})" if share_E.any() else "-" for share_E in share_CE]
            made.add_row(f"{path} {index}", f"{bits:.3f}", *most)
    return made
