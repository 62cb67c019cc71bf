"""Prints docs/parity.md: `python -m tests.models.parity_table`."""

import jax
import numpy as np

from tests.models import parity


def main() -> None:
    print(f"jax {jax.__version__}, {jax.default_backend()}, float32, tolerance 1e-5\n")
    print("## Parity\n")
    print("| checkpoint | attention | positions | visual tokens | hidden | mean | last |")
    print("|---|---|---|---|---|---|---|")
    for name in parity.CHECKPOINTS:
        for attention in parity.ATTENTIONS:
            for scheme in parity.SCHEMES:
                errors = parity.parity(name, attention_kind=attention, scheme=scheme)
                cells = " | ".join(f"{error:.1e}" for error in errors)
                print(f"| {name} | {attention} | {scheme} | {cells} |")
    print("\n## Mutations\n")
    print(f"| what is wrong | {' | '.join(parity.CHECKPOINTS)} | noticed |")
    print(f"|---|{'---|' * len(parity.CHECKPOINTS)}---|")
    for mutation in parity.mutations():
        errors = [mutation.error(name) for name in parity.CHECKPOINTS]
        noticed = "yes" if np.nanmax(errors) >= 2 * parity.TOLERANCE else "NO"
        cells = " | ".join("" if np.isnan(error) else f"{error:.1e}" for error in errors)
        print(f"| {mutation.name} | {cells} | {noticed} |")


if __name__ == "__main__":
    main()
