"""Masked LM and sentence order prediction (Lan et al. 2019, arXiv:1909.11942, 3.1).

Class 1 is a pair whose parts are swapped.
"""

from bertgpt.training.objectives import paired

make = paired.make
