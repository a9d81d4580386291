"""Who may come in: bundle, chain rules, reasons and identity; knows no Twisted, no OpenSSL."""
