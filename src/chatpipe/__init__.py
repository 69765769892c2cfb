"""chatpipe makes a chat model the way ChatGPT was made: pretrain, sft, rank, rm, ppo."""

__version__ = "0.1.0"
