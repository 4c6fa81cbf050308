"""Names of the parts that a configuration chooses, known without importing any of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blossomrec.registry import Registry

if TYPE_CHECKING:
    from blossomrec.losses.training_loss import TrainingLoss
    from blossomrec.models.sequence import SequenceModel

BACKBONES: Registry[type[SequenceModel]] = Registry(
    "backbone",
    "blossomrec.backbones",
    {
        "sasrec": "blossomrec.models.sasrec:SASRec",
        "bert4rec": "blossomrec.models.bert4rec:BERT4Rec",
        "gru4rec": "blossomrec.models.gru4rec:GRU4Rec",
    },
    base="blossomrec.models.sequence:SequenceModel",
)

LOSSES: Registry[type[TrainingLoss]] = Registry(
    "loss",
    "blossomrec.losses",
    {
        "cross_entropy": "blossomrec.losses.softmax:CrossEntropy",
        "sampled_softmax": "blossomrec.losses.sampled:SampledSoftmax",
        "gbce": "blossomrec.losses.sampled:GBCE",
        "bpr": "blossomrec.losses.sampled:BPR",
    },
    base="blossomrec.losses.training_loss:TrainingLoss",
)
