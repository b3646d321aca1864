"""`ilora compare`: runs side by side, with intervals and paired differences."""
