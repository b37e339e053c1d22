"""The whole way from an encoder to a packed model with a card: `ternarize compress`.

options.py     what can be chosen: options of the stages, in one dataclass
recipe.py      recipe.toml, which repeats a run
stages.py      which stages of a killed run are finished, by the digests of what they read and wrote
session.py     `compress`: converts, distils, packs and evaluates by the functions behind these commands
record.py      what the card says of the run
"""
