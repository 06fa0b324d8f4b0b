#!/usr/bin/env python3
"""Somebody with a browser: opens a page of the provider's, fills in its forms, says yes to all, as LOGIN.

    browser.py PAGE LOGIN [FIELD=VALUE…]
"""

import sys
from html.parser import HTMLParser
from http.cookiejar import CookieJar
from urllib.parse import urlencode, urljoin
from urllib.request import HTTPCookieProcessor, build_opener


class Form(HTMLParser):
    """The first form of a page, with what is in its fields."""

    def __init__(self):
        super().__init__()
        self.action, self.method, self.fields, self.is_over = None, "get", {}, False

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if self.is_over:
            return
        if tag == "form" and self.action is None:
            self.action, self.method = attrs.get("action", ""), attrs.get("method", "get").lower()
        elif tag in ("input", "button") and self.action is not None and attrs.get("name"):
            self.fields.setdefault(attrs["name"], attrs.get("value") or "")

    def handle_endtag(self, tag):
        if tag == "form" and self.action is not None:
            self.is_over = True


def main(page, login, *given):
    browser = build_opener(HTTPCookieProcessor(CookieJar()))
    known = {"login": login, "password": "none", **dict(field.split("=", 1) for field in given)}
    answer = browser.open(page, timeout=20)
    for _ in range(10):
        text = answer.read().decode()
        form = Form()
        form.feed(text)
        if form.action is None:
            print(" ".join(text.split())[-300:])
            return
        fields = {name: known.get(name, value) for name, value in form.fields.items()}
        target = urljoin(answer.geturl(), form.action)
        answer = browser.open(target, urlencode(fields).encode(), timeout=20)
    sys.exit("the forms do not end")


main(*sys.argv[1:])
