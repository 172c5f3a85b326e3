"""Constrained answering: the log-probability of every answer of a list, in a pass or several.

The answers form a trie. Its nodes go through the decoder side by side behind the prompt, each
seeing the prompt and its own ancestors alone, so that nothing shared is computed twice: neither the
prompt, nor beginnings that answers have in common (tree attention, as in arXiv:2305.09781).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmtrain.models.decoder import Decoder
from mmtrain.models.prefill import Prefilled, prefill
from mmtrain.nn import Mask


class AnswerTrie:
    """Answers as a tree of tokens.

    Args:
        answers: ids of each answer, its end token too where "a" and "ab" are both answers.
        max_nodes: nodes that go through the decoder at once, unless one answer has more.

    Raises:
        ValueError: there is no answer, or an empty one.
    """

    def __init__(self, answers: Sequence[Sequence[int]], *, max_nodes: int = 256) -> None:
        if not answers or not all(answers):
            raise ValueError("every answer needs at least one token")
        self.token: list[int] = []
        self.parent: list[int] = []
        self.depth: list[int] = []
        children: dict[tuple[int, int], int] = {}
        # In sorted order a node's descendants follow it at once.
        last = {}
        for answer in sorted({tuple(answer) for answer in answers}):
            node = -1
            for depth, token in enumerate(answer):
                if (node, token) not in children:
                    children[node, token] = len(self.token)
                    self.token.append(token)
                    self.parent.append(node)
                    self.depth.append(depth)
                node = children[node, token]
            last[answer] = node
        self.last = [last[tuple(answer)] for answer in answers]
        self.chunks = self._chunks(max_nodes)

    @property
    def max_chunk(self) -> int:
        """Nodes of the largest pass: slots that a cache must have behind the prompt."""
        return max(map(len, self.chunks), default=0)

    @property
    def num_read(self) -> int:
        """Tokens of the longest way down that are read: what a context must hold behind the prompt.
        An answer's last token is foretold and not read."""
        return max((self.depth[node] + 1 for chunk in self.chunks for node in chunk), default=0)

    def _chunks(self, max_nodes: int) -> list[list[int]]:
        """Nodes that have children, whole trees of a first token together where they fit."""
        inner = set(self.parent) - {-1}
        trees: list[list[int]] = []
        for node in sorted(inner):
            if self.depth[node] == 0:
                trees.append([])
            trees[-1].append(node)
        chunks: list[list[int]] = []
        for tree in trees:
            if chunks and len(chunks[-1]) + len(tree) <= max_nodes:
                chunks[-1] += tree
            else:
                chunks += self._split(tree, max_nodes)
        return chunks

    def _split(self, tree: list[int], max_nodes: int) -> list[list[int]]:
        """One tree in pieces; each begins with what its first node hangs on, read once more."""
        pieces: list[list[int]] = []
        for node in tree:
            if not pieces or len(pieces[-1]) >= max_nodes:
                pieces.append(self._above(node))
            pieces[-1].append(node)
        return pieces

    def _above(self, node: int) -> list[int]:
        """A node's ancestors, the first token first."""
        ancestors: list[int] = []
        while (node := self.parent[node]) >= 0:
            ancestors.insert(0, node)
        return ancestors


@torch.inference_mode()
def read_prompts(
    decoder: Decoder, tokens_BT: Tensor, trie: AnswerTrie, *, real_BT: Tensor | None = None
) -> Prefilled:
    """Read prompts that answers will be scored after.

    The nodes of a pass need slots of the cache each, side by side; the context is as long as the
    longest answer wants, however many there are.

    Args:
        decoder: reads.
        tokens_BT: ids.
        trie: the answers.
        real_BT: False for padding on the left.

    Raises:
        ValueError: a prompt and an answer exceed the decoder's context.
    """
    num_slots = tokens_BT.size(1) + max(trie.max_chunk, 1)
    cache = decoder.build_cache(tokens_BT.size(0), num_slots)
    return prefill(decoder, tokens_BT, max_new_tokens=trie.num_read, real_BT=real_BT, cache=cache)


@torch.inference_mode()
def score_answers(decoder: Decoder, start: Prefilled, trie: AnswerTrie) -> Tensor:
    """Total log-probabilities [B, answers] of the trie's answers after each row's prompt.

    Args:
        decoder: reads.
        start: from read_prompts; its cache is left as it was.
        trie: the answers.
    """
    cache, device = start.cache, start.logits_BV.device
    parent, depth = (torch.tensor(x, device=device) for x in (trie.parent, trie.depth))
    token = torch.tensor(trie.token, device=device)
    log_p_BA = torch.empty(start.logits_BV.size(0), len(trie.token), device=device)
    roots = (parent < 0).nonzero()[:, 0]
    log_p_BA[:, roots] = start.logits_BV.float().log_softmax(-1)[:, token[roots]]
    num_slots, length_B = cache.num_slots, cache.length_B
    seen_B1S = (cache.positions >= 0)[:, None, :]
    for chunk in trie.chunks:
        nodes = torch.tensor(chunk, device=device)
        place = {node: i for i, node in enumerate(chunk)}
        sees_CC = _ancestors(chunk, trie.parent, place).to(device)
        allowed = torch.cat(
            [
                seen_B1S.expand(-1, len(chunk), -1),
                sees_CC.expand(seen_B1S.size(0), -1, -1),
            ],
            dim=2,
        )
        logits_BCV = decoder(
            token[nodes].expand(seen_B1S.size(0), -1),
            position_BT=length_B[:, None] + depth[nodes],
            mask=Mask(allowed=allowed),
            cache=cache,
        ).float()
        cache.rewind(num_slots)
        behind = torch.isin(parent, nodes).nonzero()[:, 0]
        rows = torch.tensor([place[trie.parent[i]] for i in behind.tolist()], device=device)
        chosen_BA = logits_BCV[:, rows, token[behind]]
        log_p_BA[:, behind] = chosen_BA - logits_BCV.logsumexp(-1)[:, rows]
    for level in range(1, int(depth.max()) + 1):
        nodes = (depth == level).nonzero()[:, 0]
        log_p_BA[:, nodes] += log_p_BA[:, parent[nodes]]
    return log_p_BA[:, torch.tensor(trie.last, device=device)]


def _ancestors(chunk: list[int], parent: list[int], place: dict[int, int]) -> Tensor:
    """[C, C]: a node of the chunk sees itself and its ancestors."""
    sees_CC = torch.zeros(len(chunk), len(chunk), dtype=torch.bool)
    for i, node in enumerate(chunk):
        if parent[node] >= 0:
            sees_CC[i] = sees_CC[place[parent[node]]]
        sees_CC[i, i] = True
    return sees_CC
