"""``siloray partition``: cut a public data set into silos, for trials."""

from pathlib import Path
from typing import Annotated, Literal

import typer

RuleName = Literal["iid", "dirichlet", "labels", "quantity", "file"]


def partition(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="digits, fashion_mnist, mnist, kmnist, cifar10, cifar100, or a .parquet file.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="New folder: one folder per silo is made in it.", file_okay=False)
    ],
    silos: Annotated[int, typer.Option(help="How many.", min=1)],
    rule: Annotated[
        RuleName,
        typer.Option(
            help="iid: equal parts; dirichlet: classes in Dirichlet(alpha) shares; labels: few classes each; "
            "quantity: Dirichlet(alpha) sizes; file: as --owners says."
        ),
    ] = "iid",
    alpha: Annotated[float, typer.Option(help="Evenness of dirichlet and quantity; small is uneven.")] = 0.5,
    labels_per_silo: Annotated[int, typer.Option(help="Classes of each silo, for labels.", min=1)] = 2,
    owners: Annotated[
        Path | None,
        typer.Option(help="The silo of each row: .npz with 'owner', or a number per line.", exists=True),
    ] = None,
    min_rows: Annotated[int, typer.Option(help="Fewest training rows of a silo.", min=1)] = 10,
    seed: Annotated[int, typer.Option(help="The same seed cuts alike.", min=0)] = 0,
    root: Annotated[
        Path | None, typer.Option(help="Where torchvision's files are, or go.", file_okay=False)
    ] = None,
    label: Annotated[str, typer.Option(help="Column with the classes, in a .parquet file.")] = "label",
    test_share: Annotated[
        float, typer.Option(help="Held out where there is no test set.", min=0, max=0.9)
    ] = 0.2,
) -> None:
    """Cut a public data set into silos, each with its Parquet file and its silo.yaml."""
    from silos.tasks.owners import Scheme
    from silos.tasks.partition import write_silos

    scheme = Scheme(
        name="file" if owners else rule,
        alpha=alpha,
        labels_per_silo=labels_per_silo,
        owner_file=owners,
        min_rows=min_rows,
    )
    written = write_silos(
        source, out, silos, scheme, seed=seed, root=root, label=label, test_share=test_share
    )
    for path in written:
        typer.echo(f"{path}: {_rows(path.parent / 'data.parquet')}")


def _rows(data: Path) -> str:
    import pyarrow.parquet

    counts = pyarrow.parquet.read_table(data, columns=["split"])["split"].value_counts().to_pylist()
    rows = {str(each["values"]): int(each["counts"]) for each in counts}
    return f"{rows.get('train', 0):,} train, {rows.get('test', 0):,} test rows"
