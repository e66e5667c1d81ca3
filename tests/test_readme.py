"The README's commands and links are those of the repository; its figures are held by `test_claims`."
import json, re, sys
from pathlib import Path

import pytest

root = Path(__file__).parents[1]
readme = (root/'README.md').read_text(encoding='utf-8')
ci = (root/'.ci'/'run').read_text(encoding='utf-8')

def commands(): return [o.strip() for o in re.findall(r'^ {4}(\S.*)$', readme, flags=re.M)]

def test_there_are_two_commands_to_start_with():
    assert commands()[:2]==['pip install -e . && mnist_train', "pip install -e '.[dev]' && nbdev_test && pytest"]

def test_ci_runs_each_step_of_every_command():
    for step in ({s.strip() for c in commands() for s in c.split('&&')}
                 - {'pip install -e .', 'nbdev_test --flags slow --save'}):
        words = step.split()
        assert words[0] in ci and words[-1] in ci, step
    assert (root/'.ci'/'run').stat().st_mode & 0o111 or sys.platform=='win32'

@pytest.mark.parametrize('path', [
    'README.md', 'models/README.md', 'benchmarks/README.md', 'results/README.md', 'mnist_fastai/SAMPLE.md'])
def test_links_lead_somewhere(path):
    text = (root/path).read_text(encoding='utf-8')
    for link in re.findall(r'\]\(([^)#]+)\)', text):
        if '://' not in link: assert ((root/path).parent/link).exists(), link

def test_every_notebook_is_on_the_map():
    for nb in (root/'nbs').rglob('*.ipynb'): assert f'({nb.relative_to(root).as_posix()})' in readme, nb.name

def test_the_bar_that_the_readme_names(full):
    from mnist_fastai.eda import NearestMean
    guess = NearestMean().fit(full.train).predict(full.valid.images)
    # see tools/claims.py
    kept = json.loads((root/'benchmarks'/'accuracy.json').read_text())['nearest_mean']['valid_accuracy']
    assert (guess==full.valid.labels).double().mean().item()==pytest.approx(kept, abs=2e-4)
