"""Chat templates that would never end, or fill the memory."""

from __future__ import annotations

DOUBLED = "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}"
SHARED = "{% set ns = namespace(x=['ab']) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
KEYED = "{% set ns = namespace(x=('ab',)) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}"
BIG = "{% set big = 'ab' * 1000000 %}"
MANY = "{% for i in range(99999) %}STEP{% endfor %}"
TWICE = "{% for i in range(99999) %}{% for j in range(99999) %}STEP{% endfor %}{% endfor %}"

AGAIN = "{% for i in range(99999) %}{% if STEP %}{% endif %}{% endfor %}"
WHOLE = "{% set x = 2 ** 30000 %}{% set y = 3 ** 7000 %}" + AGAIN
SOUGHT = "{% set big = 'a' * 2400 %}{% set part = 'a' * 600 ~ 'b' ~ 'a' * 600 %}" + AGAIN
CHAIN = "{% set ns = namespace(x=['a', 'b']) %}{% for i in range(30000) %}STEP{% endfor %}{{ ns.x | list }}"

HOSTILE: dict[str, str] = {
    # Loops.
    "nested loops": TWICE.replace("STEP", ""),
    "nested loops that write": TWICE.replace("STEP", "{{ i }}"),
    "loop with a test": "{% for i in range(99999) %}{% for j in range(99999) if j < 0 %}{% endfor %}{% endfor %}",
    "loop with a large body": MANY.replace("STEP", "{% if i < 0 %}{{ i }}{% endif %}" * 1000),
    "recursive loop": "{% for i in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "recursive macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "macro default": "{% macro f(n, x=n and f(n - 1) ~ f(n - 1)) %}{% endmacro %}{{ f(60) }}",
    "recursive block": "{% block b %}{{ self.b() }}{{ self.b() }}{% endblock %}",
    "call block": "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + MANY.replace("STEP", "{% call m() %}{% call m() %}{% endcall %}{% endcall %}"),
    "slice": "{{ 5 in ([] | slice(4000000000)) }}",
    "slice as list": "{{ [] | slice(4000000000) | list | length }}",
    "mapped ranges": MANY.replace("STEP", "{{ range(99999) | map('string') | join | length }}"),
    "selected": MANY.replace("STEP", "{{ range(99999) | select('odd') | list | length }}"),
    "summed": MANY.replace("STEP", "{{ range(99999) | sum }}"),
    "sorted": MANY.replace("STEP", "{{ range(99999) | sort(reverse=true) | first }}"),
    "star": MANY.replace("STEP", "{{ dict(x=cycler(*range(99999))) is none }}"),
    "searched": BIG + MANY.replace("STEP", "{{ 'ba' * 5 in big }}{{ big.find('c') }}"),
    "searched from the right": BIG + "{{ big.rfind('c' + 'ab' * 400000) }}",
    "compared": BIG + "{% set other = big[:1999999] + 'c' %}" + MANY.replace("STEP", "{{ big == other }}"),
    "lorem ipsum": "{{ lipsum(n=100000000) }}",
    "stripped": "{{ ('a' * 1000000).strip('b' * 400000 + 'a') | length }}",
    # Operators.
    "repeated text": "{{ 'x' * 4000000000 }}",
    "repeated text, swapped": "{{ 4000000000 * 'x' }}",
    "repeated list": "{{ ([0] * 4000000000) | length }}",
    "repeated tuple": "{{ ((0, 1) * 4000000000) | length }}",
    "printf": "{{ '%4000000000d' % 1 }}",
    "printf, precision": "{{ '%.4000000000f' % 1.5 }}",
    "printf, star": "{{ '%*d' % (4000000000, 1) }}",
    "printf, mapping": BIG + "{{ ('%(a)s' * 1000) % {'a': big} }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "power by loop": "{% set ns = namespace(x=9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "power, shifted": "{{ 2 ** 4000000000 }}",
    "doubled by +": DOUBLED.replace("STEP", "ns.x + ns.x"),
    "doubled by ~": DOUBLED.replace("STEP", "ns.x ~ ns.x"),
    "doubled list": DOUBLED.replace("'ab'", "[1]").replace("STEP", "ns.x + ns.x"),
    "doubled by a block": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set y %}{{ ns.x }}{{ ns.x }}"
    "{% endset %}{% set ns.x = y %}{% endfor %}",
    "doubled by join": DOUBLED.replace("STEP", "ns.x.join(['', '', ''])"),
    "kept slices": BIG
    + "{% set ns = namespace(x=[]) %}"
    + MANY.replace("STEP", "{% set ns.x = [ns.x, big[1:]] %}"),
    "kept lists": "{% set ns = namespace(x=[]) %}" + MANY.replace("STEP", "{% set ns.x = ns.x + [i] %}"),
    # Methods.
    "center": "{{ 'x'.center(4000000000) }}",
    "ljust": "{{ 'x'.ljust(4000000000) }}",
    "rjust": "{{ 'x'.rjust(4000000000, '-') }}",
    "zfill": "{{ 'x'.zfill(4000000000) }}",
    "expandtabs": "{{ '\\t'.expandtabs(2000000000) }}",
    "expandtabs, many": "{{ ('\\t' * 100000).expandtabs(100000) }}",
    "replace": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "replace nothing": "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
    "join": "{{ ('a' * 100000).join(['b'] * 100000) }}",
    "translate": "{{ ('a' * 100000).translate({97: 'b' * 100000}) }}",
    "encode": "{{ ('\u4e2d' * 1000000).encode('ascii', 'namereplace') | length }}",
    "encode slowly": "{{ ('\u4e2d' * 1000000).encode('punycode') | length }}",
    "format": "{{ '{:4000000000}'.format(1) }}",
    "format, nested": "{{ '{:{w}}'.format('x', w=4000000000) }}",
    "format, repeated": BIG + "{{ ('{0}' * 1000).format(big) }}",
    "format_map": "{{ '{x:>4000000000}'.format_map({'x': 'y'}) }}",
    "split": MANY.replace("STEP", "{% set x = ('a' * 100000).split('a') %}"),
    "to_bytes": "{{ (1).to_bytes(4000000000, 'big') | length }}",
    "upper": BIG + MANY.replace("STEP", "{% set x = big.upper() %}"),
    # Values that hold one another.
    "shared, written": SHARED + "{{ ns.x }}",
    "shared, joined": SHARED + "{{ ns.x ~ '' }}",
    "shared, string": SHARED + "{{ ns.x | string | length }}",
    "shared, tojson": SHARED + "{{ ns.x | tojson }}",
    "shared, pprint": SHARED + "{{ ns.x | pprint }}",
    "shared, printf": SHARED + "{{ '%s' % (ns.x,) }}",
    "shared, format": SHARED + "{{ '{}'.format(ns.x) }}",
    "shared, converted": SHARED + "{{ '{!r}'.format(ns.x) }}",
    "shared, equal": SHARED.replace("ns.x", "ns.y").replace("x=", "y=")
    + "{% set a = ns.y %}"
    + SHARED
    + "{{ a == ns.x }}",
    "shared, changed": SHARED + "{% for i in [1, 2] %}{{ loop.changed(ns.x) }}{% endfor %}",
    "shared, hashed": KEYED + "{{ {ns.x: 1} | length }}",
    "shared, looked up": KEYED + "{{ {}[ns.x] }}",
    "shared, got": KEYED + "{{ {}.get(ns.x) }}",
    "shared, unique": KEYED + "{{ [ns.x, ns.x] | unique | list | length }}",
    "nested without end": "{% set ns = namespace(x=()) %}"
    + MANY.replace("STEP", "{% set ns.x = (ns.x,) %}")
    + "{{ {ns.x: 1} | length }}",
    "namespace": "{% set ns = namespace(x='ab') %}{% set ns.y = [ns, ns] %}{{ ns }}",
    # Filters.
    "center filter": "{{ 'x' | center(4000000000) }}",
    "center filter, by name": "{{ 'x' | center(width=4000000000) }}",
    "center, mapped": "{{ ['x'] | map('center', 4000000000) | join }}",
    "format filter": "{{ '%4000000000d' | format(1) }}",
    "tojson, indent": "{{ [1] | tojson(indent=4000000000) }}",
    "tojson, separators": "{{ ([1] * 10000) | tojson(separators=('a' * 100000, ':')) }}",
    "indent": "{{ 'a\nb' | indent(4000000000) }}",
    "indent, text": "{{ ('a\n' * 100000) | indent('b' * 100000) }}",
    "wordwrap": "{{ ('a' * 1000000) | wordwrap(1) }}",
    "wordwrap, with": "{{ ('a ' * 1000) | wordwrap(1, wrapstring='b' * 1000000) }}",
    "batch": "{{ [1] | batch(4000000000, 0) | list | length }}",
    "replace filter": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "urlize": "{{ (('.' * 1000000) ~ 'x') | urlize }}",
    "striptags": "{{ ('<' * 1000000) | striptags }}",
    "join filter": "{{ (['a'] * 100000) | join('b' * 100000) }}",
    "list filter": "{{ ('a' * 30000000) | list | length }}",
    "groupby": "{{ ([{'a': 1}] * 400000) | groupby('a') | length }}",
    "sum of lists": "{{ ([[1] * 1000] * 10000) | sum(start=[]) | length }}",
    "round": "{{ 5 | round(4000000000, 'ceil') }}",
    "round down": "{{ 5 | round(-4000000000) }}",
    "int filter": "{{ ('f' * 1000000) | int(base=16) }}",
    "escape": BIG + "{{ ('<' * 10000000) | escape | length }}",
    "filter block": "{% filter center(4000000000) %}x{% endfilter %}",
    "strftime": "{{ strftime_now('%c' * 1000000) }}",
    "strftime, width": "{{ strftime_now('%01000000000Y') }}",
    # Integers that are long, but none too long.
    "multiplied": WHOLE.replace("STEP", "y * y"),
    "divided": WHOLE.replace("STEP", "x // y"),
    "remainder": WHOLE.replace("STEP", "x % y"),
    "divisible": WHOLE.replace("STEP", "x is divisibleby y"),
    "power in a loop": AGAIN.replace("STEP", "3 ** 14000"),
    "integers of other bases": "{% set x = '6' * 4300 %}" + AGAIN.replace("STEP", "x | int(base=7)"),
    # Texts that take long to read.
    "float": "{% set big = '1' * 10000000 %}" + AGAIN.replace("STEP", "big | float"),
    "file size": "{% set big = '1' * 10000000 %}" + AGAIN.replace("STEP", "big | filesizeformat"),
    "sought": SOUGHT.replace("STEP", "part in big"),
    "sought, in a chain": SOUGHT.replace("STEP", "part in big in [1]"),
    "sought by a test": SOUGHT.replace("STEP", "part is in(big)"),
    "sought, counted": SOUGHT.replace("STEP", "big.count(part)"),
    "sought, split": SOUGHT.replace("STEP", "big.split(part)"),
    "sought, replaced": SOUGHT.replace("STEP", "big | replace(part, '')"),
    "sought in bytes": SOUGHT.replace("STEP", "part.encode() in big.encode()"),
    "table of characters": "{% set x = 'a' * 1000000 %}" + AGAIN.replace("STEP", "'a'.maketrans(x, x)"),
    "unescaped": "{% set x = ('&lt;' * 1000000) | safe %}" + AGAIN.replace("STEP", "x.unescape()"),
    "counted in a range": AGAIN.replace("STEP", "range(99999).count('a')"),
    "words": "{{ ('a ' * 15000000) | wordcount }}",
    "titled": "{{ ('a ' * 15000000) | title | length }}",
    "lines": "{{ ('\n' * 30000000).splitlines() | length }}",
    "lines, indented": "{{ ('\n' * 30000000) | indent | length }}",
    "joined text": "{{ ''.join('a' * 30000000) | length }}",
    "joined text, filter": "{{ ('a' * 30000000) | join | length }}",
    "lorem ipsum of nothing": "{{ lipsum(n=1000000000, min=-1, max=0) }}",
    "tojson, separators in a mapping": "{{ ([1] * 10000) | tojson(separators={'a' * 100000: 1, ':': 2}) }}",
    "tojson, separators once": "{{ ([1] * 10000) | tojson(separators=(['a' * 100000, ':'] | map('string'))) }}",
    # Iterators that read one another.
    "chain": CHAIN.replace("STEP", "{% set ns.x = ns.x | map('string') %}"),
    "chain of batches": CHAIN.replace("STEP", "{% set ns.x = ns.x | batch(1) %}"),
    "chain of mapped filters": CHAIN.replace("STEP", "{% set ns.x = [ns.x] | map('batch', 1) | first %}"),
    "chain within lists": CHAIN.replace("STEP", "{% set ns.x = [ns.x | select] | first %}"),
    "chain of cyclers": CHAIN.replace("STEP", "{% set ns.x = cycler(ns.x | map('string')).next() %}"),
    "chain of calls": "{% macro m(x) %}{{ caller(x | map('string')) }}{% endmacro %}"
    + CHAIN.replace("STEP", "{% call(y) m(ns.x) %}{% set ns.x = y %}{% endcall %}"),
    "chain of namespaces": CHAIN.replace("STEP", "{% set ns.x = namespace(y=ns.x) %}"),
}
