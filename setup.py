"Hands what settings.ini says to setuptools; there is nothing to edit here."
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

here = Path(__file__).parent
ini = ConfigParser(interpolation=None, delimiters=['='])
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
extras = {k.removesuffix('_requirements'): cfg[k].split() for k in cfg if k.endswith('_requirements')}
init = (here/cfg['lib_path']/'__init__.py').read_text(encoding='utf-8')

setup(
    name=cfg['lib_name'],
    version=re.search(r"""^__version__ *= *['"]([^'"]+)""", init, re.M)[1],
    description=cfg['description'],
    long_description=(here/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    license=cfg['license'],
    keywords=cfg['keywords'].split(),
    packages=[cfg['lib_path']],
    package_data={cfg['lib_path']: cfg['package_data'].split()},
    python_requires='>=' + cfg['min_python'],
    install_requires=cfg['requirements'].split(),
    extras_require=extras,
    entry_points=dict(console_scripts=cfg['console_scripts'].split(),
                      nbdev=[f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]),
    zip_safe=False,
)
