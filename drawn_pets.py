from tools.make_demo import make_demo
