"""What the trainers share, because each stage resumes, skips and reports in the same way; pretraining's and sft's."""
