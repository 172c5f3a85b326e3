"""One dialogue as somebody looks at it: what is said in it, and every image."""

from mmtrain.data.dialogues.dialogue import FORMS, IMAGE, parse_dialogue
from mmtrain.data.dialogues.source import dialogue_files
from mmtrain.data.images.decode import MAX_IMAGE_PIXELS, decode_image
from mmtrain.data.members import json_fields
from mmtrain.data.sample_error import IncompleteError, SampleError
from mmtrain.data.sources.open import explained
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.storage.patience import patience, patiently
from mmtrain.data.survey.seen import Picture, Seen, kind_of

TURNS, IMAGES = "turns", "images"
"""Fields that a dialogue has beside its own: how many of each."""


def look_at_dialogue(source: SampleSource, number: int) -> Seen:
    """Read a dialogue and decode its images.

    Args:
        source: of dialogues.
        number: which one.

    Raises:
        OSError: it cannot be read just now, tried several times.
    """
    seen = Seen(number=number, key=source.key(number), place=source.place(number))
    try:
        _look(seen, source)
    except SampleError as error:
        if isinstance(error, IncompleteError):
            error = explained(error, source, number)
        seen.reason = error.told
    return seen


def _look(seen: Seen, source: SampleSource) -> None:
    told = patiently(lambda: source.read(seen.number, {"json"}), seconds=patience())
    row = json_fields(told.get("json"))
    dialogue = parse_dialogue(row)
    seen.roles = tuple(turn.role for turn in dialogue.turns)
    seen.captions = tuple(turn.text for turn in dialogue.turns)
    counted = (TURNS, IMAGES)  # ours, whatever a row of its own calls so
    own = {name: value for name, value in row.items() if name not in (*FORMS, "image", *counted)}
    seen.fields = {TURNS: len(seen.roles), IMAGES: dialogue.num_places, **own}
    # The images behind the words: where one is missing, what is said can still be looked at.
    members = patiently(lambda: source.read(seen.number), seconds=patience())
    placed, files = dialogue_files(members)
    seen.captions = tuple(turn.text for turn in placed.turns)
    seen.fields[IMAGES] = len(files)
    pictures: list[Picture] = []
    for image in files:
        pixels_HWC = decode_image(image, max_pixels=MAX_IMAGE_PIXELS)
        pictures.append(Picture(image, kind_of(image), pixels_HWC))
    if pictures:
        seen.image, seen.kind, seen.pixels_HWC = pictures[0]
        seen.others = tuple(pictures[1:])


def words_of(text: str) -> str:
    """What is said in a turn, without the places of images."""
    return text.replace(IMAGE, " ").strip()
