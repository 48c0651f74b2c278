"""The demo's prompts, for the embedded model: conversations of small stories, and words to look up. Up to 600 tokens each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Messages = Sequence[Mapping[str, str]]

_KITE = """Once upon a time, there was a girl named Mia. Mia had a big red kite. Every day she ran up the hill and let the kite fly.
One windy day the string broke. The kite flew over the trees and was gone. Mia was very sad. She sat down in the grass and cried.
A little bird came and asked, "Why are you sad?" Mia said, "My kite is lost." The bird said, "I can fly high. I will help you look for it."
The bird flew over the trees and saw the red kite in a tall oak. It pulled and pulled until the kite fell down. Mia was so happy.
She thanked the bird and gave it some of her bread. From that day on they were best friends, and they played on the hill every day."""
_BOAT = """Ben and his dad made a small boat out of wood. They painted it blue and took it to the pond in the park.
Ben put the boat on the water and gave it a push. The boat went fast, but then it stopped in the middle of the pond.
Ben did not know what to do.
"Let's wait for the wind," said Dad. They sat on the bench and ate some apples. They saw ducks and frogs and a big fish.
Then the wind came, and the boat began to move. It came back to Ben, and a small frog sat on it!
Ben laughed. "Look, Dad, my boat has a captain!"
They put the frog back into the pond and went home. Ben told Mom all about the frog, and Mom smiled."""
_BEAR = """A little bear lived in the forest with his mom. He did not like the dark. Each night he asked his mom to stay until he slept.
One night his mom was not at home. The little bear was scared. He looked out and saw a small light. It was a firefly.
"Why do you shake?" asked the firefly. "I am scared of the dark," said the bear.
"Come with me," said the firefly. "The dark is full of nice things."
They walked through the forest. The bear saw the moon on the lake, and owls, and all the stars. It was beautiful.
When his mom came home, the little bear was asleep in his bed, and the firefly sat at the window and was his light."""
_TOPICS = (
    ((_KITE, "kite, hill"), (_BOAT, "boat, frog"), (_BEAR, "bear, dark"), "cat, cake"),
    ((_BEAR, "bear, night"), (_KITE, "bird, tree"), (_BOAT, "boat, wind"), "dog, rain"),
)

RECALL_QUESTION = "Which word follows garden?"
RECALL_ANSWER = "boat"
_RECALL_TEXT = (
    " able ball. The sun was warm and the sky was blue. bird clean. door fish. book bright. Tom ran home to his mom."
    " cake dream. bag farm. The dog sat under the big tree. color empty. garden boat. feel green. She put the apple in her box."
    " cat floor. early bread. They played in the sand all day. brother cold. city dinner. ask field. The cat wanted some milk."
    " chair father. grass alone. bed friend. fly button. It was time to go to bed. candy deep. angry face. full black."
    " after bring. egg forest. The bird sang a happy song. child five. clothes grow. everyone came. fire dark."
)


def conversation(number: int) -> Messages:
    """A conversation that told three stories and asks for a fourth; `number` is 0 or 1."""
    *told, topic = _TOPICS[number]
    messages = []
    for story, words in told:
        messages += [_user(f"Tell me a medium story about {words}."), {"role": "assistant", "content": story}]
    return [*messages, _user(f"Tell me a medium story about {topic}.")]


def recall() -> Messages:
    """Pairs of words among sentences, then the question for one of them."""
    return [_user(f"{_RECALL_TEXT}\n{RECALL_QUESTION}")]


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}
