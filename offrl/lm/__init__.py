"""Language-model methods on the same losses and regularisers as the control agents."""
