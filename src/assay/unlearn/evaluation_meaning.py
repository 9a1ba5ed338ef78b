"""What each number of the evaluation can and cannot show, a sentence each: reports print them under the table."""

from __future__ import annotations

MEANING = {
    "forget_accuracy": (
        "Right answers on what was forgotten: far above the retrained model's is not forgotten, below it is a mark of "
        "its own; a model that merely answers wrongly there reaches 0 and has forgotten nothing."
    ),
    "retain_accuracy": "Right answers on what was to stay: shows damage done, says nothing about forgetting.",
    "test_accuracy": "Right answers on new samples: shows damage done, says nothing about forgetting.",
    "test_accuracy_forgotten": (
        "Right answers on new samples of the forgotten class: shows whether the class itself is gone, not whether its "
        "samples left traces."
    ),
    "test_accuracy_others": "Right answers on new samples of the other classes: shows damage done, not forgetting.",
    "membership_auc": (
        "How well one threshold on the loss tells forgotten from new samples: far from the retrained model's shows a "
        "trace, near it shows only that this weak attack finds none."
    ),
    "mia_efficacy": (
        "The share of forgotten samples that an attack on the model's confidence takes for new ones: to be judged by "
        "the retrained model's, more is not better, and the attack knows nothing of single samples."
    ),
    "gap_forget": "Distance of the forget accuracy from retraining's, in either direction.",
    "gap_retain": "Distance of the retain accuracy from retraining's, in either direction.",
    "gap_test": "Distance of the test accuracy from retraining's, in either direction.",
    "gap_membership": "Distance of the membership AUC from retraining's, in either direction.",
    "gap": (
        "The mean of the four distances: 0 is needed for forgetting and not enough, since averages over samples agree "
        "even where single samples do not; the retrained column is what chance leaves."
    ),
    "klom_forget": (
        "How far the log-odds of each forgotten sample are from those of retrained models, on average: sees a model "
        "that merely answers wrongly; only as much above the retrained column counts, and outputs are not weights."
    ),
    "klom_forget_p95": "The same for the samples that were forgotten worst: one in twenty is further away than this.",
    "klom_retain": "The same for what was to stay: damage that accuracy does not see.",
    "klom_test": "The same for new samples: damage that accuracy does not see.",
    "ulira_accuracy": (
        "How often an attacker who knows the unlearner and has models of both kinds says rightly whether a sample was "
        "unlearned or never seen: 0.5 is no trace in the outputs on it, other inputs and weights are not looked at."
    ),
    "ulira_chance": (
        "What that share reaches in one of twenty cases where there is no trace: few models make it wide, and a share "
        "below it is no proof that nothing is left."
    ),
    "ulira_worst": (
        "The same for the one in twenty samples that are told best: an average of 0.5 can hide them; few models "
        "alone raise it, so compare the retrained column."
    ),
    "relearn_steps": (
        "Training steps until what was forgotten is known again: fewer than the retrained model needs means it was "
        "hidden, not gone; as many shows no more than that this training finds no short way back."
    ),
    "seconds": "Time on this machine; of a model taken from the result store, as it was when it was trained.",
    "time_ratio": "Time over that of retraining: from 1 on, retraining is the better unlearner.",
}
