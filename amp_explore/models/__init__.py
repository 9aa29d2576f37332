"""Language models as this project sees them: how one is loaded, and where its heads and neurons live."""
