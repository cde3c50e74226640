"""The dashboard: keys, allowed origins, logs and the audit trail of projects, as server-rendered pages.

A process of its own, `httpbridge dashboard`; `app` is its composition root.
"""
