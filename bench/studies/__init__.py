"""One-off measurements whose results a page quotes; nothing else imports them."""
